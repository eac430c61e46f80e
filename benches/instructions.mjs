// node benches/instructions.mjs: instructions (callgrind's count) of a prefill of 64 tokens and of one decode step,
// 7m shape, one thread, AVX2, into benches/results/instructions.json. A count says what a change of the code costs
// where timings are too noisy to; it says nothing of memory. Valgrind knows no AVX-512, hence AVX2.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'

const output = (command, ...args) => execFileSync(command, args, { encoding: 'utf8' }).trim()

execFileSync('cargo', ['build', '--release', '-p', 'mamba', '--example', 'speed'], { stdio: 'inherit' })

/** Instructions of a whole process that loads the model and does what `lines` ask; null for an unknown type. */
function count(type, lines) {
  const args = ['--tool=callgrind', '--callgrind-out-file=/dev/null', 'target/release/examples/speed']
  const { status, stderr, error } = spawnSync('valgrind', [...args, '7m', type, '1', '--stdin'], {
    input: lines,
    encoding: 'utf8',
    env: { ...process.env, NODE_MAMBA_CPU: 'avx2' },
  })
  if (error) throw error
  if (status === 2) return null
  const collected = /Collected\s*:\s*(\d+)/.exec(stderr)
  if (status !== 0 || !collected) throw new Error(stderr)
  return Number(collected[1])
}

const rows = []
for (const type of ['f32', 'bf16', 'f16', 'q8_0', 'q4_k']) {
  const load = count(type, '')
  if (load === null) {
    console.log(`${type} is left out: the speed example does not know it`)
    continue
  }
  // Runs differ by some 10,000 instructions of the threads' waiting: 0.01 % of the prefill, 0.02 % of 16 steps.
  const row = {
    type,
    prefill64: count(type, 'prefill 64\n') - load,
    decodeStep: Math.round((count(type, 'decode 1 17\n') - count(type, 'decode 1 1\n')) / 16),
  }
  rows.push(row)
  console.log(row)
}
const record = {
  date: new Date().toISOString(),
  commit: output('git', 'rev-parse', 'HEAD'),
  clean: output('git', 'status', '--porcelain') === '',
  valgrind: output('valgrind', '--version'),
  rustc: output('rustc', '--version'),
  shape: '7m',
  instructionSet: 'avx2',
  threads: 1,
  unit: 'instructions',
  rows,
}
mkdirSync('benches/results', { recursive: true })
writeFileSync('benches/results/instructions.json', `${JSON.stringify(record, null, 2)}\n`)
