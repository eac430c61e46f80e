// The program `node-mamba` and its command `doctor`, as npm users start it: with node, from what tsc compiled.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'
import { diagnose, version } from 'node-mamba'
import { writeDriver } from './helpers/fake-cuda.js'
import { temporaryFolder } from './helpers/folder.js'

const program = fileURLToPath(new URL('../dist/lib/cli/main.js', import.meta.url))
const testFakes = process.platform === 'linux' && process.arch === 'x64' ? test : test.skip

function run(args: string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
    env: { ...process.env, NODE_OPTIONS: '', ...env },
  })
  return { status, stdout, stderr }
}

/** An environment with an old driver. */
function oldDriver(t: ExecutionContext): Record<string, string> {
  const folder = temporaryFolder(t)
  writeDriver(folder, { version: 12020 })
  return { LD_LIBRARY_PATH: folder }
}

testFakes('doctor says what runs, and what keeps the GPU from being used', (t) => {
  const { status, stdout, stderr } = run(['doctor'], oldDriver(t))
  t.deepEqual([status, stderr], [0, ''])
  const row = (name: string) => stdout.match(new RegExp(`^${name} +(.*)$`, 'm'))?.[1]
  t.true(row('node-mamba')!.startsWith(`${version()}, Node ${process.version}, linux x64`), stdout)
  t.is(row('binary'), diagnose().binary)
  t.is(row('CPU'), 'works')
  t.regex(row('driver')!, /CUDA 12\.2/)
  t.is(row('CUDA'), 'not available, CUDA_DRIVER_TOO_OLD')
  t.regex(stdout, /^ +NVIDIA's driver is .*CUDA 12\.2.*expected 580 .*install NVIDIA's driver 580 or newer$/m)
})

testFakes('doctor --json gives the same to programs', (t) => {
  const { status, stdout } = run(['doctor', '--json'], oldDriver(t))
  t.is(status, 0)
  const found = JSON.parse(stdout) as ReturnType<typeof diagnose> & { tried: Record<string, object> }
  const { cuda, tried, ...others } = found
  const { cuda: _cuda, ...expected } = diagnose()
  t.deepEqual(others, { ...expected, devices: ['cpu'] })
  t.is(cuda.code, 'CUDA_DRIVER_TOO_OLD')
  t.deepEqual(tried, { cpu: { works: true } })
})

test('when the CPU does not work either, doctor fails and says why', (t) => {
  const { status, stdout, stderr } = run(['doctor'], { NODE_MAMBA_BINARY: join('nowhere', 'x.node') })
  t.deepEqual([status, stdout], [1, ''])
  t.regex(stderr, /^BINDING_NOT_FOUND: .*NODE_MAMBA_BINARY is set/)
})

test('help, and calls that are wrong', (t) => {
  const help = run(['--help'])
  t.is(help.status, 0)
  t.regex(help.stdout, /^usage: node-mamba <command>[^]*^ {2}doctor +\w/m)
  t.regex(run(['doctor', '--help']).stdout, /^usage: node-mamba doctor \[--json\]/)
  t.is(run([]).status, 2)
  for (const [args, message] of [
    [['docter'], /^there is no command 'docter'\n\nusage: node-mamba/],
    [['toString'], /^there is no command 'toString'/],
    [['doctor', '--jsn'], /^Unknown option '--jsn'[^]*usage: node-mamba doctor/],
    [['doctor', 'x'], /^Unexpected argument 'x'/],
  ] as const) {
    const { status, stderr } = run([...args])
    t.is(status, 2, args.join(' '))
    t.regex(stderr, message)
  }
})
