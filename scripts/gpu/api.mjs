// bin/node api.mjs: the public API with device 'cuda', on a machine with a GPU, against the same calls on the CPU, in the
// default model in float32. Needs nothing but the packages; scripts/gpu/pack-node.mjs brings them. Ends with 'all hold'.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { diagnose, Mamba } from 'node-mamba'

const { cuda, devices } = diagnose()
console.log(JSON.stringify(cuda))
assert.equal(cuda.available, true)
assert.deepEqual(devices, ['cpu', 'cuda'])
const main = join(dirname(fileURLToPath(import.meta.resolve('node-mamba'))), 'lib/cli/main.js')
const doctor = spawnSync(process.execPath, [main, 'doctor'], { encoding: 'utf8' })
console.log(doctor.stdout + doctor.stderr)
assert.equal(doctor.status, 0)
assert.match(doctor.stdout, /^CUDA +works$/m)

const text = 'The ship went on through the dark, and nobody on the deck said a word. '
const greedy = { maxTokens: 64, temperature: 0, ignoreEos: true }
const cpu = await Mamba.load('default', { device: 'cpu', dtype: 'f32' })
const gpu = await Mamba.load('default', { device: 'cuda', dtype: 'f32' })
const auto = await Mamba.load()
assert.deepEqual([cpu.device, gpu.device, auto.device], ['cpu', 'cuda', 'cuda'])

/** Relative error in the L2 norm. */
function error(found, expected) {
  assert.equal(found.length, expected.length)
  let [difference, norm] = [0, 0]
  for (let i = 0; i < found.length; i++) {
    difference += (found[i] - expected[i]) ** 2
    norm += expected[i] ** 2
  }
  return Math.sqrt(difference / norm)
}
function near(name, found, expected) {
  const relative = error(found, expected)
  console.log(`${name}: relative error ${relative.toExponential(1)}`)
  assert.ok(relative <= 1e-5, name)
}

near('forward', (await gpu.forward(text)).logits, (await cpu.forward(text)).logits)
near('score', (await gpu.score(text)).logprobs, (await cpu.score(text)).logprobs)
for (const pooling of ['mean', 'last'])
  near(`embed, ${pooling}`, await gpu.embed(text, { pooling }), await cpu.embed(text, { pooling }))
const [a, b] = [await gpu.forward(text), await gpu.forward(text)]
assert.deepEqual(a.logits, b.logits, 'the same call twice gives the same bits')

const expected = await cpu.complete(text, greedy)
assert.equal((await gpu.complete(text, greedy)).text, expected.text)
let streamed = ''
for await (const piece of gpu.generate(text, greedy)) streamed += piece.text
assert.equal(streamed, expected.text)
const batch = await gpu.completeBatch([text, 'He', text], greedy)
assert.deepEqual([batch[0].text, batch[2].text], [expected.text, expected.text])
const sampled = { maxTokens: 32, temperature: 0.8, topP: 0.95, seed: 7 }
assert.equal((await gpu.complete(text, sampled)).text, (await gpu.complete(text, sampled)).text)

for (const [from, to] of [
  [cpu, gpu],
  [gpu, cpu],
]) {
  const session = from.session()
  await session.append(text)
  const moved = await to.restore(session.toBytes())
  assert.equal((await moved.generate(greedy).result).text, expected.text, `${from.device} to ${to.device}`)
}

// Both multiply the same quantized weights, the CPU with activations of 8 bits, the GPU of f16: what the weights' own
// rounding leaves is alike, and the GPU adds the least to it.
const quantized = []
const exact = (await cpu.forward(text)).logits
for (const dtype of ['q8_0', 'q4_k']) {
  const onCpu = await Mamba.load('default', { device: 'cpu', dtype })
  const onGpu = await Mamba.load('default', { dtype })
  assert.equal(onGpu.device, 'cuda')
  const [there, here] = [(await onGpu.forward(text)).logits, (await onCpu.forward(text)).logits]
  const errors = [error(there, exact), error(here, exact), error(there, here)]
  const [ofGpu, ofCpu, between] = errors.map((value) => value.toExponential(2))
  console.log(`forward, ${dtype}: from f32 ${ofGpu} on the GPU, ${ofCpu} on the CPU; between them ${between}`)
  assert.ok(errors[0] > 1e-3 && errors[0] <= errors[1] * 1.02 && errors[2] < errors[1], dtype)
  quantized.push(onCpu, onGpu)
}

const stop = new AbortController()
const endless = gpu.complete(text, { maxTokens: 1e6, ignoreEos: true, signal: stop.signal })
let ticks = 0
const timer = setInterval(() => ++ticks === 20 && stop.abort(), 5)
await assert.rejects(endless, { code: 'ABORTED' })
clearInterval(timer)
assert.equal(ticks, 20, 'JavaScript ran meanwhile')
for (const model of [cpu, gpu, auto, ...quantized]) await model.dispose()
console.log('all hold')
