// node benches/streams.mjs: what is left of JavaScript's event loop while 256 streams run, on the default model. Into
// benches/results/streams-<device>.json, or `--out FILE`. `--device cuda` for a GPU, `--streams 32 --tokens 64` for less. Run
// `npm run build` before, and this on a quiet machine; it takes ten seconds on two cores.
import { writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Mamba } from 'node-mamba'
import { origin } from './record.mjs'

const text = { type: 'string' }
const { values } = parseArgs({ options: { device: text, streams: text, tokens: text, out: text } })
const { device = 'cpu', out } = values
const [streams, tokens] = [Number(values.streams ?? 256), Number(values.tokens ?? 100)]
const rounded = (x, digits = 2) => Number(x.toFixed(digits))

const model = await Mamba.load('default', { device, maxBatch: streams })
const prompts = [
  'It was',
  'The ship left the harbour at dawn, and',
  'She opened the letter. It said that',
  'A',
]

/** All streams at once; every token is an event that JavaScript gets by itself. */
const run = (maxTokens) =>
  Promise.all(
    Array.from({ length: streams }, async (_, i) => {
      const options = { maxTokens, ignoreEos: true, temperature: 0.8, seed: i }
      let seen = 0
      for await (const { text } of model.generate(prompts[i % prompts.length], options)) {
        if (typeof text === 'string') seen++
      }
      if (seen !== maxTokens) throw new Error(`stream ${i} had ${seen} tokens`)
    }),
  )

await run(5)
const lag = monitorEventLoopDelay({ resolution: 1 })
const [began, cpu, loop] = [performance.now(), process.cpuUsage(), performance.eventLoopUtilization()]
lag.enable()
await run(tokens)
lag.disable()
const seconds = (performance.now() - began) / 1000
const { user, system } = process.cpuUsage(cpu)
const { meanBatch, interToken } = model.stats()
// The timer's own millisecond is no lag.
const milliseconds = (nanoseconds) => rounded(Math.max(nanoseconds / 1e6 - 1, 0))
const record = {
  ...origin(),
  node: process.version,
  device: model.device,
  model: `the default one, ${model.dtype}`,
  what: `${streams} streams of ${tokens} tokens at once`,
  seconds: rounded(seconds),
  tokensPerSecond: Math.round((streams * tokens) / seconds),
  meanBatch: rounded(meanBatch, 1),
  interTokenMs: { p50: rounded(interToken.p50 * 1e3), p99: rounded(interToken.p99 * 1e3) },
  eventLoopLagMs: {
    p50: milliseconds(lag.percentile(50)),
    p99: milliseconds(lag.percentile(99)),
    max: milliseconds(lag.max),
    samples: lag.count,
  },
  // Parts of one core: all threads, and JavaScript's.
  cpuCores: rounded((user + system) / 1e6 / seconds),
  eventLoopUtilization: rounded(performance.eventLoopUtilization(loop).utilization),
}
await model.dispose()
console.log(record)
const file = out ?? fileURLToPath(new URL(`results/streams-${device}.json`, import.meta.url))
writeFileSync(file, `${JSON.stringify(record, null, 2)}\n`)
