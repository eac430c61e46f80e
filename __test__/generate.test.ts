import test from 'ava'
import type { GeneratedToken, GenerateOptions } from 'node-mamba'
import { failure, reference, useModel } from './helpers/model.js'

const model = useModel()
const prompt = 'It was a dark and stormy night, and the'
const sampled: GenerateOptions = { maxTokens: 40, temperature: 1, seed: 7 }

async function collect(stream: AsyncIterable<GeneratedToken>): Promise<GeneratedToken[]> {
  const steps = []
  for await (const step of stream) steps.push(step)
  return steps
}

for (const [i, { text, ids, greedy, logits }] of reference.prompts.entries()) {
  test(`prompt ${i}: ids, logits and greedy tokens are the official implementation's`, async (t) => {
    t.deepEqual([...model().tokenizer.encode(text)], ids)

    const last = await model().forward(text, { logits: 'last' })
    t.deepEqual(last.shape, [1, 8192])
    logits.forEach((logit, k) => t.true(Math.abs(last.logits[k * 1024]! - logit) < 1e-3, `logit ${k * 1024}`))

    const options = { maxTokens: greedy.length, ignoreEos: true }
    t.deepEqual([...(await model().complete(text, options)).tokens], greedy)
    t.deepEqual([...(await model().complete(ids, options)).tokens], greedy)
    t.deepEqual([...(await model().complete(Uint32Array.from(ids), options)).tokens], greedy)
  })
}

test('forward gives a row for each position, the last one as `last` gives it', async (t) => {
  const { ids } = reference.prompts[1]!
  const [all, last] = [await model().forward(ids), await model().forward(ids, { logits: 'last' })]
  t.deepEqual(all.shape, [ids.length, 8192])
  t.is(all.logits.length, ids.length * 8192)
  t.deepEqual(all.logits.slice(-8192), last.logits)
})

test('score is the log-softmax of forward', async (t) => {
  const { ids } = reference.prompts[1]!
  const { logits } = await model().forward(ids)
  const score = await model().score(ids)
  t.deepEqual([...score.tokens], ids)
  t.is(score.logprobs.length, ids.length - 1)
  let sum = 0
  score.logprobs.forEach((logprob, i) => {
    const row = logits.subarray(i * 8192, (i + 1) * 8192)
    const logSum = Math.log(row.reduce((total, logit) => total + Math.exp(logit), 0))
    t.true(Math.abs(logprob - (row[ids[i + 1]!]! - logSum)) < 1e-4)
    sum += logprob
  })
  t.true(Math.abs(score.meanNll + sum / score.logprobs.length) < 1e-9)
  t.is(score.perplexity, Math.exp(score.meanNll))
})

test('the steps add up to the result', async (t) => {
  const stream = model().generate(prompt, sampled)
  const steps = await collect(stream)
  const result = await stream.result
  t.is(steps.map((step) => step.text).join(''), result.text)
  t.deepEqual(
    steps.map((step) => step.token),
    [...result.tokens],
  )
  t.deepEqual(
    steps.map((step) => step.logprob),
    [...result.logprobs],
  )
  t.is(result.finishReason, 'length')
  t.is(result.usage.promptTokens, model().tokenizer.encode(prompt).length)
  t.is(result.usage.completionTokens, 40)
  t.true(result.usage.prefillSeconds > 0 && result.usage.decodeSeconds > 0)
  t.is(result.text, model().tokenizer.decode(result.tokens))
})

test('complete gives what generate gives', async (t) => {
  const [stream, whole] = [model().generate(prompt, sampled), await model().complete(prompt, sampled)]
  const { text, tokens, logprobs } = await stream.result
  t.deepEqual(
    { text, tokens, logprobs },
    { text: whole.text, tokens: whole.tokens, logprobs: whole.logprobs },
  )
})

test('a seed decides the text; without one it differs', async (t) => {
  const texts = async (seeds: (number | undefined)[]) =>
    Promise.all(seeds.map(async (seed) => (await model().complete(prompt, { ...sampled, seed })).text))
  const [a, again, b] = await texts([1, 1, 2])
  t.is(a, again)
  t.not(a, b)
  t.is(new Set(await texts([undefined, undefined, undefined])).size, 3)
  t.is((await texts([Number.MAX_SAFE_INTEGER])).length, 1)
})

test('topK 1 and a tiny topP are greedy; logitBias forbids and forces', async (t) => {
  const greedy = await model().complete(prompt, { maxTokens: 10 })
  t.is((await model().complete(prompt, { maxTokens: 10, temperature: 1, topK: 1 })).text, greedy.text)
  t.is((await model().complete(prompt, { maxTokens: 10, temperature: 1, topP: 1e-6 })).text, greedy.text)
  t.is((await model().complete(prompt, { maxTokens: 10, temperature: 1, minP: 1 })).text, greedy.text)
  const first = greedy.tokens[0]!
  const without = await model().complete(prompt, { maxTokens: 1, logitBias: { [first]: -100 } })
  t.not(without.tokens[0], first)
  const forced = await model().complete(prompt, { maxTokens: 3, logitBias: new Map([[42, 1000]]) })
  t.deepEqual([...forced.tokens], [42, 42, 42])
})

test('penalties end repetition', async (t) => {
  // A biased token would be chosen for ever; a frequency penalty makes the model tire of it.
  const bias = { logitBias: { 42: 1000 }, maxTokens: 6 }
  const { tokens } = await model().complete(prompt, { ...bias, frequencyPenalty: 400 })
  t.deepEqual([...tokens].filter((id) => id === 42).length, 3)
  t.deepEqual([...tokens].slice(0, 3), [42, 42, 42])
  const once = await model().complete(prompt, { ...bias, presencePenalty: 2000 })
  t.is([...once.tokens].filter((id) => id === 42).length, 1)
  const window = await model().complete(prompt, { ...bias, presencePenalty: 2000, penaltyWindow: 1 })
  t.deepEqual(
    [...window.tokens].map((id) => id === 42),
    [true, false, true, false, true, false],
  )
})

test('a stop text ends generation before it, also where it spans tokens', async (t) => {
  const whole = await model().complete(prompt, { maxTokens: 40 })
  const pieces = [...whole.tokens].map((id) => model().tokenizer.decode([id]))
  // From the middle of one token to the middle of a later one.
  const at = whole.text.indexOf(pieces[12]!, pieces.slice(0, 12).join('').length)
  const stop = whole.text.slice(at + 1, at + pieces[12]!.length + pieces[13]!.length + 1)
  t.true(stop.length > 2)
  const begin = whole.text.indexOf(stop)
  const stream = model().generate(prompt, { maxTokens: 40, stop: ['never to be seen', stop] })
  const steps = await collect(stream)
  const result = await stream.result
  t.is(result.text, whole.text.slice(0, begin))
  t.is(steps.map((step) => step.text).join(''), result.text)
  t.is(result.finishReason, 'stop')
  t.is((await model().complete(prompt, { maxTokens: 40, stop })).text, result.text)
})

test('a stop token ends generation; its text is not emitted', async (t) => {
  const whole = await model().complete(prompt, { maxTokens: 20 })
  const stopToken = whole.tokens[9]!
  const at = whole.tokens.indexOf(stopToken)
  const result = await model().complete(prompt, { maxTokens: 20, stopTokens: [stopToken] })
  t.deepEqual(result.tokens, whole.tokens.slice(0, at + 1))
  t.is(result.text, model().tokenizer.decode(whole.tokens.slice(0, at)))
  t.is(result.finishReason, 'stop')
})

test('the end of text ends generation, unless ignoreEos is set', async (t) => {
  const [eos] = model().eosTokenIds
  const options = { maxTokens: 3, logitBias: { [eos!]: 1000 } }
  const ended = await model().complete(prompt, options)
  t.is(ended.finishReason, 'stop')
  t.is(ended.text, '')
  t.deepEqual([...ended.tokens], [eos])
  t.is((await model().complete(prompt, { ...options, ignoreEos: true })).tokens.length, 3)
})

test('logprobs: the likeliest tokens come with each step, likeliest first', async (t) => {
  const stream = model().generate(prompt, { maxTokens: 8, logprobs: 5 })
  for await (const { token, logprob, top } of stream) {
    t.is(top!.length, 5)
    t.deepEqual(top![0], { token, logprob }) // greedy
    t.deepEqual(
      top,
      top!.toSorted((a, b) => b.logprob - a.logprob),
    )
    t.true(top!.reduce((sum, { logprob: value }) => sum + Math.exp(value), 0) <= 1 + 1e-5)
  }
  const { top } = await stream.result
  t.is(top!.length, 8)
  t.deepEqual((await model().complete(prompt, { maxTokens: 8, logprobs: 5 })).top, top)
  t.is((await model().complete(prompt, { maxTokens: 1 })).top, undefined)
})

test('a step never carries half a character', async (t) => {
  // Each character of this text is several bytes, and in this vocabulary several tokens.
  const wanted = '🚢 ünïcödé — 船'
  const ids = [...model().tokenizer.encode(wanted)]
  t.true(ids.length > wanted.length)
  // Forced one at a time, by a session whose stream must put the pieces together.
  const session = model().session()
  await session.append('x')
  let text = ''
  for (const id of ids) {
    const stream = session.generate({ maxTokens: 1, logitBias: { [id]: 1000 }, ignoreEos: true })
    for await (const step of stream) {
      t.false(step.text.includes('\uFFFD'), JSON.stringify(step.text))
      text += step.text
    }
  }
  t.is(text, wanted)
})

test('a signal that is aborted before ends a call before any work', async (t) => {
  const reason = new Error('enough')
  const signal = AbortSignal.abort(reason)
  const calls: [string, Promise<unknown>][] = [
    ['complete', model().complete(prompt, { signal })],
    ['completeBatch', model().completeBatch([prompt], { signal })],
    ['generate', collect(model().generate(prompt, { signal }))],
    ['result', model().generate(prompt, { signal }).result],
    ['forward', model().forward(prompt, { signal })],
    ['score', model().score(prompt, { signal })],
    ['embed', model().embed(prompt, { signal })],
    ['append', model().session().append(prompt, { signal })],
    ['embedStream', model().embedStream([prompt], { signal }).next()],
  ]
  for (const [name, call] of calls) {
    const error = await t.throwsAsync(call, failure('ABORTED'), name)
    t.is(error!.cause, reason, name)
  }
})

test('a signal ends generation in its middle, and the model stays usable', async (t) => {
  const controller = new AbortController()
  const stream = model().generate(prompt, {
    maxTokens: 1_000_000,
    ignoreEos: true,
    signal: controller.signal,
  })
  let steps = 0
  const error = await t.throwsAsync(async () => {
    for await (const { token } of stream) if (token >= 0 && ++steps === 5) controller.abort()
  }, failure('ABORTED'))
  t.is(error!.cause, controller.signal.reason)
  t.is(await t.throwsAsync(stream.result), error)
  t.true(steps >= 5)
  t.is((await model().complete(prompt, { maxTokens: 4 })).tokens.length, 4)
})

test('a signal ends complete in its middle', async (t) => {
  const signal = AbortSignal.timeout(50)
  const options = { maxTokens: 1_000_000, ignoreEos: true, signal }
  const error = await t.throwsAsync(model().complete(prompt, options), failure('ABORTED'))
  t.is((error!.cause as Error).name, 'TimeoutError')
})

test('no listener stays on a signal', async (t) => {
  const { signal } = new AbortController()
  const listeners = new Set<unknown>()
  const [add, remove] = [signal.addEventListener, signal.removeEventListener]
  signal.addEventListener = function (this: AbortSignal, type: string, listener: never, options?: never) {
    listeners.add(listener)
    return add.call(this, type, listener, options)
  } as typeof add
  signal.removeEventListener = function (this: AbortSignal, type: string, listener: never) {
    listeners.delete(listener)
    return remove.call(this, type, listener)
  } as typeof remove
  await model().complete(prompt, { maxTokens: 2, signal })
  await model().generate(prompt, { maxTokens: 2, signal }).result
  await model().completeBatch([prompt, prompt], { maxTokens: 2, signal })
  await model().embed(['a', 'b'], { signal })
  for await (const batch of model().embedStream(['a', 'b', 'c'], { batchSize: 1, signal }))
    t.is(batch.texts.length, 1)
  await t.throwsAsync(model().complete([], { signal }))
  t.is(listeners.size, 0)
})

test('leaving the loop ends the generation', async (t) => {
  const stream = model().generate(prompt, { maxTokens: 1_000_000, ignoreEos: true })
  for await (const { token } of stream) if (token >= 0) break
  await t.throwsAsync(stream.result, failure('ABORTED'))
  t.deepEqual(await stream.next(), { done: true, value: undefined })
})

test('result can be awaited without iterating, and twice', async (t) => {
  const stream = model().generate(prompt, { maxTokens: 5 })
  t.is((await stream.result).tokens.length, 5)
  t.is((await collect(stream)).length, 5)
  t.is((await stream.result).tokens.length, 5)
})
