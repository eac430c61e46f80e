import { setImmediate as tick } from 'node:timers/promises'
import test from 'ava'
import type { EmbeddedBatch } from 'node-mamba'
import { failure, useModel } from './helpers/model.js'

const model = useModel()
const texts = [
  'The ship sailed.',
  'A much longer sentence about a house in the country, and a dog.',
  'x',
  'Love.',
]

const length = (vector: Float32Array) => Math.hypot(...vector)

test('vectors come in the order of the texts, as views of one buffer', async (t) => {
  const vectors = await model().embed(texts)
  t.is(vectors.length, 4)
  t.is(new Set(vectors.map((vector) => vector.buffer)).size, 1)
  for (const [i, text] of texts.entries()) {
    t.is(vectors[i]!.length, 256)
    t.true(Math.abs(length(vectors[i]!) - 1) < 1e-5)
    t.deepEqual([...(await model().embed(text))], [...vectors[i]!], text)
  }
})

test('one text gives one vector, several give an array; so do ids', async (t) => {
  const ids = model().tokenizer.encode(texts[0]!)
  const vector = await model().embed(texts[0]!)
  t.true(vector instanceof Float32Array)
  t.deepEqual(await model().embed(ids), vector)
  t.deepEqual(await model().embed([...ids]), vector)
  for (const list of [[texts[0]!], [ids], [[...ids]]]) {
    const vectors = await model().embed(list)
    t.true(Array.isArray(vectors))
    t.deepEqual(vectors, [vector])
  }
  t.deepEqual(await model().embed([]), [])
})

test('pooling, normalize and dimensions', async (t) => {
  const raw = await model().embed(texts[1]!, { normalize: false })
  t.true(Math.abs(length(raw) - 1) > 0.01)
  const unit = await model().embed(texts[1]!)
  unit.forEach((x, i) => t.true(Math.abs(x - raw[i]! / length(raw)) < 1e-5))

  const short = await model().embed(texts[1]!, { dimensions: 16 })
  t.is(short.length, 16)
  t.true(Math.abs(length(short) - 1) < 1e-5)
  const head = raw.slice(0, 16)
  short.forEach((x, i) => t.true(Math.abs(x - head[i]! / length(head)) < 1e-5))

  const last = await model().embed(texts[1]!, { pooling: 'last', normalize: false })
  t.notDeepEqual(last, raw)
  // Of a single token, mean and last are the same.
  t.deepEqual(
    await model().embed([5], { pooling: 'last', normalize: false }),
    await model().embed([5], { pooling: 'mean', normalize: false }),
  )
  // The mean over positions of what `last` gives for each prefix.
  const ids = [...model().tokenizer.encode(texts[0]!)]
  const prefixes = await model().embed(
    ids.map((_, i) => ids.slice(0, i + 1)),
    { pooling: 'last', normalize: false },
  )
  const mean = await model().embed(ids, { normalize: false })
  mean.forEach((x, i) => {
    const expected = prefixes.reduce((sum, vector) => sum + vector[i]!, 0) / ids.length
    t.true(Math.abs(x - expected) < 1e-4)
  })
})

test('vectors may be transferred to another thread', async (t) => {
  const [vector] = await model().embed(texts)
  t.is(structuredClone(vector, { transfer: [vector!.buffer as ArrayBuffer] })!.length, 256)
})

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items = []
  for await (const item of stream) items.push(item)
  return items
}

test('embedStream gives what embed gives, batch by batch', async (t) => {
  const many = Array.from({ length: 10 }, (_, i) => `Sentence number ${i}.`)
  const expected = await model().embed(many)
  const sources: Record<string, () => Iterable<string> | AsyncIterable<string>> = {
    array: () => many,
    generator: function* () {
      yield* many
    },
    'async generator': async function* () {
      for (const text of many) {
        await tick()
        yield text
      }
    },
  }
  for (const [name, source] of Object.entries(sources)) {
    const batches: EmbeddedBatch<string>[] = await collect(model().embedStream(source(), { batchSize: 4 }))
    t.deepEqual(
      batches.map(({ offset }) => offset),
      [0, 4, 8],
      name,
    )
    t.deepEqual(
      batches.flatMap((batch) => batch.texts),
      many,
    )
    batches
      .flatMap(({ vectors }) => vectors)
      .forEach((vector, i) => t.deepEqual([...vector], [...expected[i]!]))
  }
  t.deepEqual((await collect(model().embedStream(many.slice(0, 8), { batchSize: 4 }))).length, 2)
  t.deepEqual(await collect(model().embedStream([])), [])
})

test('embedStream does not run ahead of its consumer', async (t) => {
  let given = 0
  function* endless() {
    for (;;) yield `Sentence ${given++}`
  }
  const stream = model().embedStream(endless(), { batchSize: 8 })
  for (let taken = 1; taken <= 5; taken++) {
    await stream.next()
    // Time for it to run ahead, if it were to: the model does several batches meanwhile.
    await model().embed(Array(32).fill('A sentence of some length.') as string[])
    t.is(given, 8 * (taken + 1), 'the one that was taken, and one more')
  }
  await stream.return()
})

test('leaving embedStream closes its source, and a failing source ends it', async (t) => {
  let closed = false
  async function* source() {
    try {
      for (;;) yield 'text'
    } finally {
      closed = true
    }
  }
  for await (const { vectors } of model().embedStream(source(), { batchSize: 2 })) {
    t.is(vectors.length, 2)
    break
  }
  await tick()
  t.true(closed)

  const mine = new Error('mine')
  async function* failing() {
    yield 'a'
    yield 'b'
    throw mine
  }
  const stream = model().embedStream(failing(), { batchSize: 1 })
  const seen: string[] = []
  const error = await t.throwsAsync(async () => {
    for await (const batch of stream) seen.push(...batch.texts)
  })
  t.is(error, mine)
  t.deepEqual(seen, ['a', 'b'])
})

test('a signal ends embedStream while its source is silent', async (t) => {
  const controller = new AbortController()
  async function* silent() {
    yield 'a'
    await new Promise(() => {})
  }
  const stream = model().embedStream(silent(), { batchSize: 1, signal: controller.signal })
  t.is((await stream.next()).done, false)
  const next = stream.next()
  controller.abort(new Error('enough'))
  const error = await t.throwsAsync(next, failure('ABORTED'))
  t.is((error!.cause as Error).message, 'enough')
})

test('one bad text fails the call, by its number', async (t) => {
  await t.throwsAsync(model().embed(['a', '', 'c']), failure('EMPTY_PROMPT', /input 1/))
  await t.throwsAsync(model().embed([[1], [8192]]), failure('TOKEN_OUT_OF_RANGE', /8192/))
  await t.throwsAsync(model().embed(['a', 7 as never]), failure('INVALID_ARGUMENT', /text 1 is 7/))
  await t.throwsAsync(collect(model().embedStream(['a', ''], { batchSize: 1 })), failure('EMPTY_PROMPT'))
})
