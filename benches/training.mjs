// node benches/training.mjs: training steps on the CPU, f32, AdamW included, beside PyTorch's, the same model, batch and
// threads, taking turns, into benches/results/cpu-training.json. Needs Python 3.11 or newer with venv, and PyPI the first
// time (PyTorch, 5 GB, into .cache/training). Run it on a quiet machine.
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { createInterface } from 'node:readline'

const [dModel, layers, vocabulary, sequences, length, threads] = [256, 4, 8192, 8, 512, 2]
const rounds = 3
const packages = ['torch==2.15.0', 'transformers==5.24.0', 'mambapy==1.2.0']

const venv = '.cache/training'
const python = `${venv}/bin/python`
if (!existsSync(`${venv}/lib`)) execFileSync('python3', ['-m', 'venv', venv], { stdio: 'inherit' })
const installed = execFileSync(python, ['-m', 'pip', 'freeze'], { encoding: 'utf8' }).split('\n')
if (!packages.every((name) => installed.includes(name)))
  execFileSync(python, ['-m', 'pip', 'install', '--quiet', ...packages], { stdio: 'inherit' })
execFileSync('cargo', ['build', '--release', '-p', 'mamba', '--example', 'train_speed'], { stdio: 'inherit' })

// Memory that PyTorch has freed stays with the process: otherwise half of its time goes to the kernel for new pages.
const kept = {
  MALLOC_MMAP_MAX_: '0',
  MALLOC_TRIM_THRESHOLD_: '100000000000',
  MALLOC_TOP_PAD_: '67108864',
}
const sizes = [dModel, layers, vocabulary, sequences, length, threads].map(String)
const peer = spawn(python, ['benches/training/peer.py', ...sizes], {
  env: { ...process.env, ...kept },
  stdio: ['pipe', 'pipe', 'ignore'],
})
const lines = createInterface({ input: peer.stdout })[Symbol.asyncIterator]()
async function answer() {
  const { value, done } = await lines.next()
  if (done) throw new Error('benches/training/peer.py ended; run it by hand to see why')
  return JSON.parse(value)
}
const ask = (line) => {
  peer.stdin.write(`${line}\n`)
  return answer()
}

const { versions, parameters } = await answer()
const gradients = await ask('check')
if (!(Math.max(...Object.values(gradients)) < 1e-4))
  throw new Error(`the peers' gradients differ: ${JSON.stringify(gradients)}`)

const ours = () => {
  const shape = `${dModel}x${layers}x${vocabulary}`
  const args = [shape, 'f32', String(sequences), String(length), '4', '--threads', String(threads)]
  return JSON.parse(execFileSync('target/release/examples/train_speed', args, { encoding: 'utf8' }))
    .tokens_per_second
}
const took = { transformers: [], mambapy: [], vectorized: [], 'node-mamba': [] }
for (let round = 0; round < rounds; round++) {
  // transformers' own scan takes half a minute a step.
  if (round === 0) took.transformers.push(await ask('transformers 1'))
  if (round < 2) took.mambapy.push(await ask('mambapy 1'))
  took['node-mamba'].push(ours())
  took.vectorized.push(await ask('vectorized 2'))
  console.log(took)
}
took['node-mamba'].push(ours())
peer.stdin.end()

const best = Object.fromEntries(Object.entries(took).map(([name, rates]) => [name, Math.max(...rates)]))
const { 'node-mamba': own, ...others } = best
const record = {
  date: new Date().toISOString(),
  commit: execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }).trim(),
  clean: execFileSync('git', ['status', '--porcelain'], { encoding: 'utf8' }) === '',
  processor: cpus()[0].model,
  cores: cpus().length,
  threads,
  versions,
  model: { d_model: dModel, n_layer: layers, vocab_size: vocabulary, parameters },
  batch: { sequences, length },
  precision: 'f32',
  unit: 'tokens/s',
  gradients,
  rounds: took,
  best,
  timesTheFastestPeer: own / Math.max(...Object.values(others)),
}
writeFileSync('benches/results/cpu-training.json', `${JSON.stringify(record, null, 2)}\n`)
console.log(best, record.timesTheFastestPeer)
