// node benches/engine.mjs: what the engine does with many calls at once, through the public API, on the CPU: 32 streams, a
// long prompt that comes while streams run, and prompts that share a beginning. Into benches/results/engine.json.
// Run `npm run build` before, and this on a quiet machine.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { Mamba } from '../dist/index.js'
import { origin } from './record.mjs'

const rounded = (x, digits = 1) => Number(x.toFixed(digits))
const ids = (count, seed = 0) => Uint32Array.from({ length: count }, (_, i) => ((i + seed) * 7919) % 50277)

/** Iterates over a generation; the milliseconds between its tokens. */
async function gaps(stream, each = () => {}) {
  const found = []
  let last
  for await (const token of stream) {
    const now = performance.now()
    if (last !== undefined) found.push(now - last)
    last = now
    each(token)
  }
  return found
}

/** 32 calls at once, each with a prompt of its own, and the event loop's lag meanwhile. */
async function streams(folder) {
  const model = await Mamba.load(folder, { device: 'cpu', dtype: 'bf16' })
  const run = (tokens) =>
    Promise.all(
      Array.from({ length: 32 }, (_, i) =>
        gaps(model.generate(ids(20 + 5 * i, i), { maxTokens: tokens, ignoreEos: true })),
      ),
    )
  await run(4)
  const lag = monitorEventLoopDelay({ resolution: 1 })
  lag.enable()
  const start = performance.now()
  await run(64)
  const seconds = (performance.now() - start) / 1000
  lag.disable()
  const { interToken, meanBatch } = model.stats()
  await model.dispose()
  return {
    what: '32 streams of 64 tokens, prompts of 20 to 175',
    tokensPerSecond: rounded((32 * 64) / seconds),
    meanBatch: rounded(meanBatch),
    interTokenMs: { p50: rounded(interToken.p50 * 1e3), p99: rounded(interToken.p99 * 1e3) },
    eventLoopLagP99Ms: rounded(lag.percentile(99) / 1e6 - 1, 2), // the timer's own millisecond is no lag
  }
}

/** The longest gap in eight streams while a prompt of 2048 tokens is computed, and how long that takes. */
async function stall(folder, maxStall) {
  const model = await Mamba.load(folder, { device: 'cpu', dtype: 'bf16', maxStall })
  const prompts = async () => {
    await model.forward(ids(2048), { logits: 'last' })
    const start = performance.now()
    await model.forward(ids(2048), { logits: 'last' })
    return (performance.now() - start) / 1000
  }
  let waiting = 8
  let begin
  const begun = new Promise((resolve) => (begin = resolve))
  const stop = new AbortController()
  const all = Promise.allSettled(
    Array.from({ length: 8 }, (_, i) => {
      const found = []
      let last
      const stream = model.generate(ids(10, i), { maxTokens: 1e6, ignoreEos: true, signal: stop.signal })
      return (async () => {
        for await (const _ of stream) {
          const now = performance.now()
          if (last === undefined && --waiting === 0) begin()
          else if (last !== undefined && waiting === 0) found.push(now - last)
          last = now
        }
      })().catch(() => found)
    }),
  )
  await begun
  const took = await prompts()
  stop.abort()
  const longest = Math.max(...(await all).flatMap(({ value }) => value))
  await model.dispose()
  return {
    what: 'a prompt of 2048 tokens beside 8 streams',
    maxStall,
    longestGapMs: rounded(longest),
    promptSeconds: rounded(took, 2),
  }
}

/** Time to the first token of prompts of 1024 shared tokens and 32 of their own. */
async function prefixes(folder, bytes) {
  const model = await Mamba.load(folder, { device: 'cpu', dtype: 'bf16', prefixCache: { bytes } })
  const prompt = (i) => Uint32Array.from([...ids(1024), ...ids(32, 100 * (i + 1))])
  if (bytes) await model.cachePrefix(ids(1024))
  const times = []
  for (let i = 0; i < 9; i++) {
    const start = performance.now()
    await model.complete(prompt(i), { maxTokens: 1, ignoreEos: true })
    times.push(performance.now() - start)
  }
  const { hits } = model.stats().prefixCache
  await model.dispose()
  return {
    what: 'first token after 1024 shared and 32 own tokens',
    prefixCache: bytes > 0,
    hits,
    firstTokenMs: rounded(times.toSorted((a, b) => a - b)[4]),
  }
}

const folder = mkdtempSync(join(tmpdir(), 'node-mamba-engine-'))
try {
  const cargo = ['run', '--release', '-q', '-p', 'mamba', '--example', 'speed', '--']
  execFileSync('cargo', [...cargo, '130m', 'bf16', '2', '--save', folder], { stdio: 'inherit' })
  const rows = [
    await streams(folder),
    await stall(folder, 3_600_000),
    await stall(folder, 100),
    await prefixes(folder, 0),
    await prefixes(folder, 64e6),
  ]
  rows.forEach((row) => console.log(row))
  const record = {
    ...origin(),
    model: '130m, bf16, random weights',
    rows,
  }
  writeFileSync('benches/results/engine.json', `${JSON.stringify(record, null, 2)}\n`)
} finally {
  rmSync(folder, { recursive: true })
}
