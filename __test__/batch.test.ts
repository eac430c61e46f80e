import test from 'ava'
import { Mamba, type GenerateOptions } from 'node-mamba'
import { failure, reference, useModel } from './helpers/model.js'

const model = useModel()
const source = reference.prompts[2]!.text
/** Prompts of very different lengths. */
const prompts = Array.from({ length: 64 }, (_, i) => source.slice(i * 7, i * 7 + 3 + ((i * 37) % 200)))

/** One by one, so that nothing shares a step. */
async function oneByOne(options: GenerateOptions): Promise<string[]> {
  const texts: string[] = []
  for (const prompt of prompts) texts.push((await model().complete(prompt, options)).text)
  return texts
}

// On the CPU every kernel sums in an order that does not depend on the batch, so texts are equal outright.
for (const [name, options] of Object.entries({
  greedy: { maxTokens: 12 },
  sampled: { maxTokens: 12, temperature: 1, seed: 11 },
})) {
  test(`64 ${name} completions at once are those of one by one`, async (t) => {
    const expected = await oneByOne(options)
    t.true(new Set(expected).size > 32)
    const together = await Promise.all(prompts.map((prompt) => model().complete(prompt, options)))
    t.deepEqual(
      together.map(({ text }) => text),
      expected,
    )
    const batch = await model().completeBatch(prompts, options)
    t.deepEqual(
      batch.map(({ text }) => text),
      expected,
    )
  })
}

test('a batch larger than the queue is no trouble', async (t) => {
  const small = await Mamba.load('default', { queueLimit: 3, maxBatch: 2 })
  t.teardown(() => small.dispose())
  const results = await small.completeBatch(prompts.slice(0, 20), { maxTokens: 2 })
  t.is(results.length, 20)
  // The same all at once is refused, by the limit.
  const all = Promise.all(prompts.map((prompt) => small.complete(prompt, { maxTokens: 2 })))
  await t.throwsAsync(all, failure('QUEUE_FULL', /3 requests/))
})

test('an empty batch is empty', async (t) => {
  t.deepEqual(await model().completeBatch([]), [])
})

test('one failure rejects the batch and ends the rest', async (t) => {
  const bad = [prompts[0]!, prompts[1]!, [9999], ...prompts]
  const start = performance.now()
  const options = { maxTokens: 1_000_000, ignoreEos: true }
  await t.throwsAsync(model().completeBatch(bad, options), failure('TOKEN_OUT_OF_RANGE', /9999/))
  // A million tokens take minutes.
  t.true(performance.now() - start < 30_000)
  t.is((await model().complete('The ship', { maxTokens: 2 })).tokens.length, 2)
})

test('a signal ends a batch', async (t) => {
  const controller = new AbortController()
  const options = { maxTokens: 1_000_000, ignoreEos: true, signal: controller.signal }
  const batch = model().completeBatch(prompts, options)
  setTimeout(() => controller.abort(new Error('enough')), 50)
  const error = await t.throwsAsync(batch, failure('ABORTED'))
  t.is((error!.cause as Error).message, 'enough')
})
