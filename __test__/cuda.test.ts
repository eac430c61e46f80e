// Whether and why the CUDA build is used: every code of the probe, with stand-ins for NVIDIA's driver and libraries.
// The CPU's addon under another path stands in for the CUDA build.
import { execFileSync } from 'node:child_process'
import { copyFileSync, cpSync, existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'
import { diagnose, Mamba, type Diagnosis, type MambaErrorCode } from 'node-mamba'
import { libraryPlaces } from '../lib/cuda-libraries.js'
import { compile, writeDriver, writeLibraries, type FakeDriver } from './helpers/fake-cuda.js'
import { temporaryFolder } from './helpers/folder.js'
import { failure, modelFolder } from './helpers/model.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const supported = process.platform === 'linux' && process.arch === 'x64'
const testFakes = supported ? test : test.skip

interface Machine {
  driver?: FakeDriver
  env?: Record<string, string>
  /** A folder whose dist/ is imported; by default the repository. */
  folder?: string
}

/** Runs a script on a machine with this driver, with CUDA libraries and a CUDA build; what it prints, from JSON. */
function onMachine<T>(
  t: ExecutionContext,
  script: string,
  { driver, env = {}, folder = root }: Machine = {},
): T {
  const fakes = temporaryFolder(t)
  if (!env.LD_LIBRARY_PATH) writeDriver(fakes, driver)
  if (!('NODE_MAMBA_CUDA_PATH' in env)) writeLibraries(fakes)
  const { NODE_OPTIONS: _options, ...outer } = process.env
  const source = `import { readFileSync } from 'node:fs'
    import * as mamba from './dist/index.js'
    const { Mamba, diagnose } = mamba
    const source = ${JSON.stringify(modelFolder)}
    const codeOf = (device) => Mamba.load(source, { device }).then((model) => model.device, (error) => error.code)
    const loadedFiles = () => readFileSync('/proc/self/maps', 'utf8')
    const print = (value) => console.log(JSON.stringify(value))
    ${script}`
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', source], {
    cwd: folder,
    encoding: 'utf8',
    timeout: 60_000,
    env: {
      ...outer,
      LD_LIBRARY_PATH: fakes,
      NODE_MAMBA_CUDA_PATH: fakes,
      NODE_MAMBA_CUDA_BINARY: cudaBuild(t),
      ...env,
    },
  })
  return JSON.parse(output) as T
}

/** The CPU's addon as another file, so another addon to the process. */
function cudaBuild(t: ExecutionContext): string {
  const file = join(temporaryFolder(t), 'node-mamba-cuda.node')
  copyFileSync(diagnose().binary, file)
  return file
}

const everything = `print({ cuda: diagnose().cuda, devices: diagnose().devices, codes: [await codeOf('cuda'), await codeOf('auto')] })`
interface Everything {
  before?: boolean
  cuda: Diagnosis['cuda']
  devices: string[]
  codes: [cuda: string, auto: string]
}

/** `diagnose()` says this, `device: 'cuda'` is refused with it, and `device: 'auto'` takes the CPU. */
function refused(t: ExecutionContext, machine: Machine, code: MambaErrorCode, reason: RegExp): Everything {
  const found = onMachine<Everything>(t, everything, machine)
  t.false(found.cuda.available)
  t.is(found.cuda.code, code)
  t.regex(found.cuda.reason!, reason)
  t.deepEqual(found.codes, [code, 'cpu'])
  t.deepEqual(found.devices, ['cpu'])
  return found
}

testFakes('no driver: a file of its name that is none', (t) => {
  const folder = temporaryFolder(t)
  writeFileSync(join(folder, 'libcuda.so.1'), 'no library')
  const env = { LD_LIBRARY_PATH: folder }
  refused(t, { env }, 'CUDA_DRIVER_MISSING', /libcuda\.so\.1: .*; install NVIDIA's driver 580 or newer/)
})

testFakes("the toolkit's stub is no driver", (t) => {
  refused(t, { driver: { init: 34 } }, 'CUDA_DRIVER_MISSING', /stub/)
})

testFakes('an old driver', (t) => {
  const driver = { version: 12040 }
  const { cuda } = refused(t, { driver }, 'CUDA_DRIVER_TOO_OLD', /CUDA 12\.4\b.*expected 580 \(CUDA 13\.0\)/)
  t.regex(cuda.driver!, /CUDA 12\.4/)
})

testFakes('a driver that fails', (t) => {
  refused(
    t,
    { driver: { init: 999 } },
    'CUDA_DRIVER_ERROR',
    /cuInit gave 999, CUDA_ERROR_UNKNOWN, expected 0/,
  )
  refused(t, { driver: { init: 803 } }, 'CUDA_DRIVER_ERROR', /cuInit gave 803, expected 0/)
})

testFakes('a library of that name without the functions of a driver', (t) => {
  const folder = temporaryFolder(t)
  compile(folder, 'libcuda.so.1', 'int cuDriverGetVersion(int *version) { *version = 13000; return 0; }')
  const env = { LD_LIBRARY_PATH: folder }
  refused(t, { env }, 'CUDA_DRIVER_ERROR', new RegExp(`${folder}/libcuda.so.1 has no cuInit`))
})

testFakes('a driver that never answers is not waited for', (t) => {
  const script = `const { binding } = await import('./dist/lib/binding.js')
    const start = performance.now()
    const probe = binding().probeCudaSync([], 200)
    print({ ...probe, milliseconds: performance.now() - start })
    process.exit()`
  const { code, reason, milliseconds } = onMachine<{ code: string; reason: string; milliseconds: number }>(
    t,
    script,
    { driver: { seconds: 50 } },
  )
  t.is(code, 'CUDA_DRIVER_ERROR')
  t.regex(reason, /did not answer within 0\.2 s/)
  t.true(milliseconds < 10_000, `${milliseconds}`)
})

testFakes('while a driver does not answer, nobody else waits for it', (t) => {
  const script = `const { binding } = await import('./dist/lib/binding.js')
    const probe = (timeout) => binding().probeCudaSync([], timeout)
    const reasons = [probe(100).reason, probe(60_000).reason]
    let later = probe(60_000)
    while (later.code === 'CUDA_DRIVER_ERROR') {
      await new Promise((resolve) => setTimeout(resolve, 100))
      later = probe(60_000)
    }
    print({ reasons, later: later.code })`
  const found = onMachine<{ reasons: string[]; later: string }>(t, script, { driver: { seconds: 3 } })
  t.regex(found.reasons[0]!, /did not answer within 0\.1 s/)
  t.regex(found.reasons[1]!, /has not answered an earlier look at it yet/)
  t.is(found.later, 'CUDA_LIBRARY_MISSING', 'the driver has answered')
})

testFakes('no GPU', (t) => {
  refused(
    t,
    { driver: { init: 100 } },
    'CUDA_NO_DEVICE',
    /expected at least one; see what nvidia-smi -L lists/,
  )
  const hidden = { driver: { devices: 0 }, env: { CUDA_VISIBLE_DEVICES: '7' } }
  refused(t, hidden, 'CUDA_NO_DEVICE', /CUDA_VISIBLE_DEVICES is '7'/)
})

testFakes('an old GPU', (t) => {
  const { cuda } = refused(
    t,
    { driver: { capability: [7, 5] } },
    'CUDA_DEVICE_TOO_OLD',
    /Fake GPU 40 has compute capability 7\.5, expected 8\.0 or newer/,
  )
  t.is(cuda.device?.computeCapability, '7.5')
})

testFakes('no CUDA libraries', (t) => {
  const empty = temporaryFolder(t)
  const env = { NODE_MAMBA_CUDA_PATH: empty }
  const missing = new RegExp(`Tried:\n- NODE_MAMBA_CUDA_PATH ${empty}/?: no libcublasLt\\.so\\.13\n`)
  const { cuda } = refused(t, { env }, 'CUDA_LIBRARY_MISSING', missing)
  t.is(cuda.reason!.split('\n').length, 4, 'the folder, its lib64, its lib, and nothing else')

  const half = temporaryFolder(t)
  writeLibraries(half)
  writeFileSync(join(half, 'libcublas.so.13'), 'no library')
  refused(
    t,
    { env: { NODE_MAMBA_CUDA_PATH: half } },
    'CUDA_LIBRARY_MISSING',
    /libcublas\.so\.13: (invalid ELF header|file too short)/,
  )
})

testFakes('no CUDA build', (t) => {
  const env = { NODE_MAMBA_CUDA_BINARY: '/nowhere/x.node' }
  refused(
    t,
    { env },
    'CUDA_PACKAGE_MISSING',
    /NODE_MAMBA_CUDA_BINARY is set[^]*\/nowhere\/x\.node: Cannot find/,
  )

  const folder = temporaryFolder(t)
  cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}')
  const alone = { folder, env: { NODE_MAMBA_CUDA_BINARY: '', NODE_MAMBA_BINARY: diagnose().binary } }
  refused(
    t,
    alone,
    'CUDA_PACKAGE_MISSING',
    /npm install @node-mamba\/cuda[^]*- @node-mamba\/cuda: Cannot find/,
  )
  t.false(
    onMachine<boolean>(t, `await codeOf('auto'); print(/libcuda|libcublas/.test(loadedFiles()))`, alone),
    'without the package, `auto` does not look for a driver',
  )
})

testFakes('a CUDA build of another version', (t) => {
  const file = join(temporaryFolder(t), 'other.cjs')
  writeFileSync(file, `exports.version = () => '9.9.9'`)
  const env = { NODE_MAMBA_CUDA_BINARY: file }
  refused(t, { env }, 'CUDA_PACKAGE_VERSION', /of version 9\.9\.9, expected \d+\.\d+\.\d+.*npm install/)
})

testFakes('when all holds, diagnose() says what was found, and auto takes the CUDA build', (t) => {
  const found = onMachine<Everything & { files: string }>(
    t,
    `await codeOf('cpu')
    const before = /libcuda|cuda\\.node/.test(loadedFiles())
    const codes = [await codeOf('auto'), await codeOf('cuda')]
    print({ before, codes, files: loadedFiles(), cuda: diagnose().cuda, devices: diagnose().devices })`,
  )
  t.is(found.cuda.reason, undefined)
  t.true(found.cuda.available)
  t.false(found.before, '`cpu` does not look for a driver')
  t.deepEqual(found.devices, ['cpu', 'cuda'])
  t.deepEqual(found.cuda.device, {
    name: 'Fake GPU 40',
    computeCapability: '9.0',
    memoryBytes: 80 * 2 ** 30,
  })
  t.regex(found.cuda.driver!, /CUDA 13\.0/)
  t.deepEqual(
    found.cuda.libraries.map((file) => file.split('/').at(-1)),
    ['libcublasLt.so.13', 'libcublas.so.13'],
  )
  t.regex(found.cuda.binary!, /node-mamba-cuda\.node$/)
  t.true(found.files.includes(found.cuda.binary!))
  // The stand-in is the CPU's addon, which says so.
  t.deepEqual(found.codes, ['cpu', 'DEVICE_UNAVAILABLE'])
})

testFakes('libraries on the search path of the loader, or in CUDA_HOME', (t) => {
  const [home, path] = [temporaryFolder(t), temporaryFolder(t)]
  writeLibraries(join(home, 'lib64'))
  writeLibraries(path)
  writeDriver(path)
  const libraries = (env: Record<string, string>) =>
    onMachine<Diagnosis['cuda']>(t, 'print(diagnose().cuda)', {
      env: { NODE_MAMBA_CUDA_PATH: '', LD_LIBRARY_PATH: path, ...env },
    }).libraries.map((file) => dirname(file))
  t.deepEqual(libraries({}), [path, path])
  t.deepEqual(libraries({ CUDA_HOME: home }), [join(home, 'lib64'), join(home, 'lib64')])
  t.deepEqual(libraries({ NODE_MAMBA_CUDA_PATH: home }), [join(home, 'lib64'), join(home, 'lib64')])
})

test.serial('where the libraries are looked for, and in which order', (t) => {
  const folder = temporaryFolder(t)
  const before = { ...process.env }
  t.teardown(() => {
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
  })
  const wheels = (prefix: string) => {
    const lib = join(folder, prefix, 'lib/python3.11/site-packages/nvidia/cu13/lib')
    mkdirSync(lib, { recursive: true })
    return lib
  }
  const python = join(folder, 'python/bin')
  mkdirSync(python, { recursive: true })
  writeFileSync(join(python, 'python3'), '')
  Object.assign(process.env, { CUDA_HOME: '/home13', CUDA_PATH: '/path13', PATH: python })
  Object.assign(process.env, { VIRTUAL_ENV: join(folder, 'venv'), HOME: join(folder, 'home') })
  delete process.env.CONDA_PREFIX
  delete process.env.NODE_MAMBA_CUDA_PATH
  const pip = [wheels('venv'), wheels('python'), wheels('home/.local')]
  const folders = libraryPlaces().map(({ folder }) => folder)
  t.deepEqual(folders.slice(0, 9), [
    ...['/home13/lib64', '/home13/lib', '/path13/lib64', '/path13/lib'],
    undefined,
    '/usr/local/cuda/lib64',
    ...pip,
  ])
  for (const further of folders.slice(9)) t.true(existsSync(further!), further)

  process.env.NODE_MAMBA_CUDA_PATH = '/only'
  t.deepEqual(
    libraryPlaces().map(({ folder }) => folder),
    ['/only', '/only/lib64', '/only/lib'],
  )
})

testFakes('the libraries are found by their names, and their symbols by nobody else', (t) => {
  // The loader does not look in their folder.
  const folder = temporaryFolder(t)
  writeLibraries(folder)
  const addon = 'int fake_cublas(void); int other(void) { return fake_cublas(); }'
  compile(folder, 'named.node', addon, [join(folder, 'libcublas.so.13')])
  compile(folder, 'unnamed.node', addon)
  const errors = onMachine<string[]>(
    t,
    `const { constants } = await import('node:os')
    await codeOf('auto')
    const load = (name) => {
      try {
        process.dlopen({ exports: {} }, ${JSON.stringify(folder)} + name, constants.dlopen.RTLD_NOW)
      } catch (error) {
        return error.message
      }
    }
    print([load('/named.node'), load('/unnamed.node')])`,
    { env: { NODE_MAMBA_CUDA_PATH: folder } },
  )
  t.regex(errors[0]!, /did not self-register/, 'it was loaded')
  t.regex(errors[1]!, /undefined symbol: fake_cublas/)
})

testFakes('a session moves between the models of two addons, by its bytes', (t) => {
  const texts = onMachine<string[]>(
    t,
    `const cpu = await Mamba.load(source, { device: 'cpu', dtype: 'f32' })
    const other = await Mamba.load(source, { device: 'auto', dtype: 'f32' })
    const session = cpu.session()
    await session.append('The ship went on')
    const moved = await other.restore(session.toBytes())
    const options = { maxTokens: 20, temperature: 0 }
    print([(await session.generate(options).result).text, (await moved.generate(options).result).text])`,
  )
  t.is(texts[0], texts[1])
  t.true(texts[0]!.length > 10)
})

test('elsewhere, the platform is named', async (t) => {
  const { cuda } = diagnose()
  if (supported) {
    t.not(cuda.code, 'CUDA_UNSUPPORTED_PLATFORM')
    return
  }
  t.is(cuda.code, 'CUDA_UNSUPPORTED_PLATFORM')
  t.regex(cuda.reason!, /Linux x64 with glibc only/)
  await t.throwsAsync(Mamba.load(modelFolder, { device: 'cuda' }), failure('CUDA_UNSUPPORTED_PLATFORM'))
})
