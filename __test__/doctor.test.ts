// `node-mamba doctor`.
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { diagnose, version } from 'node-mamba'
import { interrupt } from '../lib/cli/interrupt.js'
import { createProgram } from '../lib/cli/program.js'
import { run } from './helpers/cli.js'
import { writeDriver } from './helpers/fake-cuda.js'
import { temporaryFolder } from './helpers/folder.js'

const testFakes = process.platform === 'linux' && process.arch === 'x64' ? test : test.skip

/** An environment with an old driver. */
function oldDriver(t: ExecutionContext): Record<string, string> {
  const folder = temporaryFolder(t)
  writeDriver(folder, { version: 12020 })
  return { LD_LIBRARY_PATH: folder }
}

testFakes('doctor says what runs, and what keeps the GPU from being used', (t) => {
  const { status, stdout, stderr } = run(['doctor'], { env: oldDriver(t) })
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
  const { status, stdout } = run(['doctor', '--json'], { env: oldDriver(t) })
  t.is(status, 0)
  const found = JSON.parse(stdout) as ReturnType<typeof diagnose> & { tried: Record<string, object> }
  const { cuda, tried, ...others } = found
  const { cuda: _cuda, ...expected } = diagnose()
  t.deepEqual(others, { ...expected, devices: ['cpu'] })
  t.is(cuda.code, 'CUDA_DRIVER_TOO_OLD')
  t.deepEqual(tried, { cpu: { works: true } })
})

test('when the CPU does not work either, doctor fails and says why', (t) => {
  const { status, stdout, stderr } = run(['doctor'], {
    env: { NODE_MAMBA_BINARY: join('nowhere', 'x.node') },
  })
  t.deepEqual([status, stdout], [1, ''])
  t.regex(stderr, /^BINDING_NOT_FOUND: .*NODE_MAMBA_BINARY is set/)
})

test('Ctrl-C ends what doctor tries', async (t) => {
  interrupt('SIGINT')
  await t.throwsAsync(createProgram().parseAsync(['doctor'], { from: 'user' }), { code: 'ABORTED' })
})
