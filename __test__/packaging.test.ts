// Packs the packages, installs the tarballs into an empty project, and looks at what a user gets. With
// NODE_MAMBA_RELEASE=1 the binaries are those of `npm run build:release` and `npm run build:cuda`, otherwise there is
// the local build alone.
import { execFileSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import anyTest, { type ExecutionContext, type TestFn } from 'ava'
import type { Diagnosis } from 'node-mamba'
import { requiredVersions } from './helpers/elf.js'
import { writeDriver, writeLibraries } from './helpers/fake-cuda.js'

const test = anyTest as TestFn<{ project: string; platform: string }>
const root = fileURLToPath(new URL('..', import.meta.url))
const release = process.env.NODE_MAMBA_RELEASE === '1'
const withCuda = release && process.platform === 'linux' && process.arch === 'x64'
const read = (...path: string[]) => readFileSync(join(root, ...path), 'utf8')

/** All files below a folder, as sorted paths relative to it. */
function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) =>
      join(entry.parentPath, entry.name)
        .slice(folder.length + 1)
        .replaceAll('\\', '/'),
    )
    .toSorted()
}

/** npm's own script, so that it can be run without any PATH. */
function npmScript(): string {
  const here = dirname(process.execPath)
  const places = [
    process.env.npm_execpath ?? '',
    join(here, 'node_modules/npm/bin/npm-cli.js'),
    join(here, '../lib/node_modules/npm/bin/npm-cli.js'),
    join(here, '../share/nodejs/npm/bin/npm-cli.js'),
  ]
  return places.find((place) => place.endsWith('npm-cli.js') && existsSync(place))!
}

/** Runs Node in the project with no PATH: no cargo, no compiler, no shell. */
function node(project: string, ...args: string[]): string {
  return nodeWith({}, project, ...args)
}

function nodeWith(environment: Record<string, string>, project: string, ...args: string[]): string {
  const { PATH: _path, NODE_OPTIONS: _options, NODE_MAMBA_BINARY: _binary, ...env } = process.env
  return execFileSync(process.execPath, args, {
    cwd: project,
    encoding: 'utf8',
    env: { ...env, PATH: '', ...environment },
  }).trim()
}

/** Offline and with an empty cache: what is not in the tarballs is not needed. */
function install(project: string, tarballs: string[]): void {
  const flags = ['--offline', `--cache=${project}/.npm`, '--no-audit', '--no-fund']
  node(project, npmScript(), 'install', ...flags, ...tarballs)
}

/** What the package depends on, which npm would fetch, from what is installed here. */
function packDependencies(folder: string): string[] {
  const { dependencies } = JSON.parse(read('package.json')) as { dependencies: Record<string, string> }
  return Object.keys(dependencies).map((name) => {
    const flags = ['--silent', '--ignore-scripts', `--pack-destination=${folder}`]
    return join(folder, node(folder, npmScript(), 'pack', ...flags, join(root, 'node_modules', name)))
  })
}

test.before('pack, and install into an empty project', (t) => {
  const project = mkdtempSync(join(tmpdir(), 'node-mamba-project-'))
  t.context = { project, platform: '' }
  execFileSync(process.execPath, ['scripts/pack.mjs', ...(release ? ['--release'] : [])], { cwd: root })
  writeFileSync(join(project, 'package.json'), '{"name":"empty","private":true,"type":"module"}')
  const packed = readdirSync(join(root, '.cache/pack')).map((name) => join(root, '.cache/pack', name))
  // The CUDA build is opt-in, so it is installed by a test of its own.
  const tarballs = packed.filter((name) => !name.includes('node-mamba-cuda'))
  t.is(tarballs.length, 3)
  t.is(packed.length, withCuda ? 5 : 3)
  install(project, [...tarballs, ...packDependencies(project)])
  writeFileSync(
    join(project, 'diagnose.js'),
    `import { diagnose } from 'node-mamba'\nconsole.log(JSON.stringify(diagnose()))\n`,
  )
  t.context.platform = readdirSync(join(project, 'node_modules/@node-mamba')).find(
    (name) => name !== 'model-default',
  )!
})

test.after.always((t) => rmSync(t.context.project, { recursive: true, force: true }))

test("the README's first example runs in the installed package, without Rust", (t) => {
  const { project } = t.context
  const example = read('README.md').match(/```ts\n([^]*?)```/)![1]!
  t.regex(example, /from 'node-mamba'/)
  writeFileSync(join(project, 'example.js'), example)
  const text = node(project, 'example.js')
  t.log(text)
  t.true(text.split(/\s+/).length > 20)
})

test('the installed package finds its own binary, of its own version', (t) => {
  const { project, platform } = t.context
  const { version, binary } = JSON.parse(node(project, 'diagnose.js')) as { version: string; binary: string }
  t.is(version, (JSON.parse(read('package.json')) as { version: string }).version)
  t.true(binary.endsWith(join('node_modules/@node-mamba', platform, `node-mamba.${platform}.node`)), binary)
})

test('the packages hold what they should and nothing else', (t) => {
  const modules = join(t.context.project, 'node_modules')
  const { platform } = t.context
  const compiled = [
    'index.ts',
    ...readdirSync(join(root, 'lib'), { recursive: true }).map((name) => `lib/${String(name)}`),
  ]
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts'))
    .map((name) => `dist/${name.slice(0, -3)}`)
  t.deepEqual(
    filesBelow(join(modules, 'node-mamba')),
    [
      'CHANGELOG.md',
      'LICENSE',
      'README.md',
      'package.json',
      'dist/lib/native.d.ts',
      ...compiled.flatMap((name) => [`${name}.js`, `${name}.d.ts`]),
      ...filesBelow(join(root, 'dist/playground')).map((name) => `dist/playground/${name}`),
    ].toSorted(),
  )
  t.deepEqual(filesBelow(join(modules, '@node-mamba', platform)), [
    'LICENSE',
    'README.md',
    'THIRD-PARTY-LICENSES.txt',
    `node-mamba.${platform}.node`,
    'package.json',
  ])
  t.deepEqual(filesBelow(join(modules, '@node-mamba/model-default')), [
    'LICENSE',
    'README.md',
    'config.json',
    'model.safetensors',
    'package.json',
    'tokenizer.json',
  ])
})

test('the program runs, and nothing but its own two packages came with it', (t) => {
  const { project } = t.context
  const main = join(project, 'node_modules/node-mamba/dist/lib/cli/main.js')
  t.true(node(project, main, 'run', 'The ship', '-n', '8').length > 10)
  const others = readdirSync(join(project, 'node_modules')).filter((name) => !name.startsWith('.'))
  t.deepEqual(others.toSorted(), ['@bomb.sh', '@node-mamba', 'commander', 'node-mamba'])
})

test('facade and binary take less than 25 MB', (t) => {
  const bytes = ['node-mamba', `@node-mamba/${t.context.platform}`]
    .map((name) => join(t.context.project, 'node_modules', name))
    .flatMap((folder) => filesBelow(folder).map((file) => statSync(join(folder, file)).size))
    .reduce((sum, size) => sum + size)
  t.log(`${(bytes / 1e6).toFixed(1)} MB`)
  t.true(bytes < 25e6)
})

test('nothing runs when the package is installed, and it asks for every platform package', (t) => {
  const require = createRequire(join(t.context.project, 'index.js'))
  const facade = require('node-mamba/package.json') as Record<string, Record<string, string>>
  t.false('scripts' in facade)
  t.false('devDependencies' in facade)
  const platforms = readdirSync(join(root, 'npm')).map((name) => `@node-mamba/${name}`)
  t.is(facade.peerDependencies!['@node-mamba/cuda'], facade.version as unknown as string)
  t.deepEqual(
    facade.peerDependenciesMeta as unknown,
    Object.fromEntries(Object.keys(facade.peerDependencies!).map((name) => [name, { optional: true }])),
  )
  t.deepEqual(
    Object.keys(facade.optionalDependencies!).toSorted(),
    [...platforms, '@node-mamba/model-default'].toSorted(),
  )
})

test('one version everywhere', (t) => {
  const { version, optionalDependencies } = JSON.parse(read('package.json')) as {
    version: string
    optionalDependencies: Record<string, string>
  }
  t.is(read('Cargo.toml').match(/^version = "(.+)"/m)![1], version)
  for (const platform of readdirSync(join(root, 'npm')))
    t.is(
      (JSON.parse(read('npm', platform, 'package.json')) as { version: string }).version,
      version,
      platform,
    )
  for (const name of readdirSync(join(root, 'npm-cuda'))) {
    const packageJson = JSON.parse(read('npm-cuda', name, 'package.json')) as {
      version: string
      optionalDependencies?: Record<string, string>
    }
    for (const found of [packageJson.version, ...Object.values(packageJson.optionalDependencies ?? {})])
      t.is(found, version, name)
  }
  const model = JSON.parse(read('models/mamba-novels-7m/package.json')) as { name: string; version: string }
  t.is(optionalDependencies[model.name], model.version)
})

/** Fails if a binary needs a newer glibc than 2.28. */
function needsOldGlibc(t: ExecutionContext, binary: string): void {
  const versions = requiredVersions(readFileSync(binary)).filter((version) => /^GLIBC_\d/.test(version))
  t.true(versions.length > 0)
  t.log(versions.join(' '))
  const newest = Math.max(...versions.map((version) => Number(version.split('.')[1])))
  t.true(newest <= 28, `GLIBC_2.${newest}`)
}

const testRelease = release && process.platform === 'linux' ? test : test.skip

testRelease('the release binary needs no newer glibc than 2.28', (t) => {
  const { project, platform } = t.context
  needsOldGlibc(t, join(project, `node_modules/@node-mamba/${platform}/node-mamba.${platform}.node`))
})

const testCuda = withCuda ? test.serial : test.skip

test("the server's entry is there, and says which packages it needs", (t) => {
  const { project } = t.context
  writeFileSync(
    join(project, 'server.js'),
    `import { createApp, MemorySessions } from 'node-mamba/server'
    new MemorySessions()
    createApp({ models: {} }).catch(({ code, message }) => console.log(code, message))\n`,
  )
  t.regex(node(project, 'server.js'), /^PEER_MISSING .*npm install hono @hono\/node-server zod prom-client$/)
})

testCuda('the CUDA build installs beside it, loads without a GPU, and says what is missing', (t) => {
  const { project } = t.context
  const packed = join(root, '.cache/pack')
  install(
    project,
    readdirSync(packed)
      .filter((name) => name.includes('node-mamba-cuda'))
      .map((name) => join(packed, name)),
  )
  const modules = join(project, 'node_modules/@node-mamba')
  t.deepEqual(filesBelow(join(modules, 'cuda')), ['LICENSE', 'README.md', 'index.js', 'package.json'])
  const files = filesBelow(join(modules, 'cuda-linux-x64-gnu'))
  t.deepEqual(files, [
    'LICENSE',
    'README.md',
    'THIRD-PARTY-LICENSES.txt',
    'node-mamba-cuda.linux-x64-gnu.node',
    'package.json',
  ])
  const bytes = files
    .map((file) => statSync(join(modules, 'cuda-linux-x64-gnu', file)).size)
    .reduce((sum, size) => sum + size)
  t.log(`${(bytes / 1e6).toFixed(1)} MB`)
  t.true(bytes < 60e6)
  needsOldGlibc(t, join(modules, 'cuda-linux-x64-gnu/node-mamba-cuda.linux-x64-gnu.node'))

  // Everything that the probe looks at is there: stand-ins, which compute nothing.
  const fakes = join(project, 'fakes')
  writeDriver(fakes)
  writeLibraries(fakes)
  const complete = { LD_LIBRARY_PATH: fakes, NODE_MAMBA_CUDA_PATH: fakes }
  const { cuda } = JSON.parse(nodeWith(complete, project, 'diagnose.js')) as Diagnosis
  t.is(cuda.reason, undefined)
  t.is(cuda.binary, join(modules, 'cuda/index.js'))

  // No driver: the binary loads all the same, and neither it nor the facade in front of it takes the GPU.
  const broken = join(project, 'broken')
  mkdirSync(broken)
  for (const name of ['libcuda.so', 'libcuda.so.1']) writeFileSync(join(broken, name), 'no library')
  writeFileSync(
    join(project, 'cuda.js'),
    `import { createRequire } from 'node:module'
    import { dirname } from 'node:path'
    import { Mamba } from 'node-mamba'
    const require = createRequire(import.meta.url)
    const addon = require('@node-mamba/cuda')
    const folder = dirname(require.resolve('@node-mamba/model-default/package.json'))
    const loadBy = (device) => new Promise((resolve) =>
      addon.load(folder, { device }, (error, event) => {
        if (error) resolve(error.code)
        else if (event instanceof addon.NativeModel) resolve(event.info().device)
      }))
    const codeOf = (device) => Mamba.load('default', { device }).then((model) => model.device, (error) => error.code)
    console.log(JSON.stringify({
      devices: addon.diagnose().devices,
      addon: [await loadBy('cuda'), await loadBy('auto')],
      facade: [await codeOf('cuda'), await codeOf('auto')],
    }))\n`,
  )
  t.deepEqual(JSON.parse(nodeWith({ LD_LIBRARY_PATH: broken }, project, 'cuda.js')), {
    devices: ['cpu', 'cuda'],
    addon: ['DEVICE_UNAVAILABLE', 'cpu'],
    facade: ['CUDA_DRIVER_MISSING', 'cpu'],
  })
})

test.serial('npx node-mamba doctor', (t) => {
  const { project } = t.context
  t.regex(node(project, 'node_modules/.bin/node-mamba', 'doctor'), /^CPU +works$/m)
})
