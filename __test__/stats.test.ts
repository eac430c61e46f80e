import test from 'ava'
import { Mamba } from 'node-mamba'
import { runChild } from './helpers/child.js'
import { failure } from './helpers/model.js'

test('statistics count what the engine did', async (t) => {
  const model = await Mamba.load('default', { maxBatch: 8, queueLimit: 8 })
  t.teardown(() => model.dispose())
  const fresh = model.stats()
  t.is(fresh.slots, 8)
  t.is(fresh.stateBytes, 8 * model.stateBytes)
  t.is(fresh.weightBytes, model.weightBytes)
  t.is(fresh.requestsTotal, 0)
  const prompt = [5, 6, 7]
  const calls = Array.from({ length: 8 }, () => model.complete(prompt, { maxTokens: 50, ignoreEos: true }))
  await t.throwsAsync(model.complete(prompt), failure('QUEUE_FULL'))
  t.is(model.stats().requestsInFlight, 8)
  await Promise.all(calls)
  const stats = model.stats()
  t.is(stats.requestsInFlight, 0)
  t.is(stats.requestsTotal, 9)
  t.is(stats.requestsRefused, 1)
  t.is(stats.generatedTokensTotal, 8 * 50)
  t.is(stats.timeToFirstToken.count, 8)
  t.is(stats.interToken.count, 8 * 49)
  t.true(stats.generatedTokensPerSecond > 0)
  const { p50, p90, p99 } = stats.interToken
  t.true(p50 > 0 && p50 <= p90 && p90 <= p99 && p99 < 60)
})

test('a stream of statistics, until the model is disposed of or it is aborted', async (t) => {
  const model = await Mamba.load()
  let seen = 0
  for await (const { slots } of model.statsStream({ interval: 10 })) {
    t.is(slots, 32)
    if (++seen === 3) await model.dispose()
  }
  t.is(seen, 3)
  t.throws(() => model.stats(), failure('MODEL_DISPOSED'))
  const other = await Mamba.load()
  t.teardown(() => other.dispose())
  const stop = new AbortController()
  const stream = other.statsStream({ interval: 1_000_000, signal: stop.signal })
  await stream.next()
  const next = stream.next()
  stop.abort()
  await t.throwsAsync(next, failure('ABORTED'))
  await t.throwsAsync(other.statsStream({ interval: 1 }).next(), failure('OPTION_INVALID', /interval/))
})

test('who only watches does not keep the process alive', async (t) => {
  const { code, stdout, stderr } = await runChild(`
    const model = await Mamba.load()
    const watch = async () => {
      for await (const { slots } of model.statsStream()) console.log(slots)
    }
    void watch()
  `)
  t.deepEqual([code, stdout, stderr], [0, '32\n', ''])
})
