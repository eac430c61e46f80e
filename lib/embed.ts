import { call, queuedNames, readStanding, untilAborted, type Queued } from './call.js'
import { MambaError } from './errors.js'
import { toNative, type TextOrIds } from './input.js'
import type { NativeEmbedOptions, NativeEvent, NativeModel, NativeStanding } from './native.js'
import { Options, shown } from './options.js'

/** How texts become vectors. */
export interface EmbedOptions extends Queued {
  /**
   * `mean`: the mean of the hidden states after the final norm over all tokens. `last`: that of the last
   * token. Default: `mean`.
   */
  pooling?: 'mean' | 'last'
  /** Scale each vector to length 1, after `dimensions`. Default: true. */
  normalize?: boolean
  /** Keep the first so many components, 1 to the model's `d_model`. Default: all. */
  dimensions?: number
}

/** How a stream of texts becomes vectors. */
export interface EmbedStreamOptions extends EmbedOptions {
  /** Texts of one batch, from 1. Default: 64. */
  batchSize?: number
}

/** Some texts of a stream and their vectors. */
export interface EmbeddedBatch<T extends TextOrIds = TextOrIds> {
  /** Which text of the stream is the first one here. */
  offset: number
  /** The texts, as the stream gave them. */
  texts: T[]
  /** One vector per text, in their order; views of one buffer. */
  vectors: Float32Array[]
}

const names = [
  'pooling',
  'normalize',
  'dimensions',
  ...queuedNames,
] as const satisfies readonly (keyof EmbedOptions)[]

function readEmbedOptions(read: Options<EmbedStreamOptions>): NativeEmbedOptions {
  return {
    pooling: read.oneOf('pooling', ['mean', 'last']) ?? 'mean',
    normalize: read.boolean('normalize') ?? true,
    dimensions: read.integer('dimensions'),
  }
}

function embedAll(
  model: NativeModel,
  texts: readonly TextOrIds[],
  options: NativeEmbedOptions,
  standing: NativeStanding,
  signal: AbortSignal | undefined,
): Promise<Float32Array[]> {
  const inputs = texts.map((text, i) => toNative(text, `text ${i}`))
  return call<NativeEvent>(signal, (last) => model.embed(inputs, options, standing, last)).then((event) => {
    if (event.type !== 'embeddings') throw new MambaError('INTERNAL', `an embedding ended with ${event.type}`)
    const { dimensions, data } = event
    return texts.map((_, i) => data.subarray(i * dimensions, (i + 1) * dimensions))
  })
}

/** One text, or several? An array of numbers is the ids of one. */
function isOne(texts: TextOrIds | readonly TextOrIds[]): texts is TextOrIds {
  return typeof texts === 'string' || texts instanceof Uint32Array || typeof texts[0] === 'number'
}

/** Behind `model.embed`. */
export async function embed(
  model: NativeModel,
  texts: TextOrIds | readonly TextOrIds[],
  options: EmbedOptions | undefined,
): Promise<Float32Array | Float32Array[]> {
  const read = new Options(options, names)
  const [native, standing, signal] = [readEmbedOptions(read), readStanding(read), read.signal()]
  if (typeof texts !== 'string' && !(texts instanceof Uint32Array) && !Array.isArray(texts)) {
    throw new MambaError(
      'INVALID_ARGUMENT',
      `the texts are ${shown(texts)}, expected a text or an array of texts`,
    )
  }
  if (!isOne(texts)) return embedAll(model, texts, native, standing, signal)
  const [vector] = await embedAll(model, [texts], native, standing, signal)
  return vector!
}

/** Behind `model.embedStream`. */
export async function* embedStream<T extends TextOrIds>(
  model: NativeModel,
  texts: Iterable<T> | AsyncIterable<T>,
  options: EmbedStreamOptions | undefined,
): AsyncGenerator<EmbeddedBatch<T>, void, undefined> {
  const read = new Options(options, [...names, 'batchSize'])
  const [native, standing, signal] = [readEmbedOptions(read), readStanding(read), read.signal()]
  const batchSize = read.integer('batchSize', 1) ?? 64
  const source = iterate(texts)

  // Ends what is under way when the consumer leaves or something fails.
  const stop = new AbortController()
  const forward = () => stop.abort(signal?.reason)
  if (signal?.aborted) forward()
  signal?.addEventListener('abort', forward, { once: true })

  let offset = 0
  /** Takes the next batch from the source; its vectors follow. */
  const start = () => {
    const taken = takeBatch(source, batchSize, stop.signal)
    const vectors = taken.then((batch) =>
      batch.length ? embedAll(model, batch, native, standing, stop.signal) : [],
    )
    taken.catch(() => {}) // awaited below, perhaps after the other one has failed
    vectors.catch(() => {})
    return { taken, vectors }
  }
  try {
    // One batch is with the consumer or awaited by it, the next one is being read and computed: never more.
    let ahead = start()
    for (;;) {
      const current = ahead
      const batch = await current.taken
      if (batch.length === 0) return
      if (batch.length === batchSize) ahead = start()
      const vectors = await current.vectors
      yield { offset, texts: batch, vectors }
      offset += batch.length
      if (batch.length < batchSize) return
    }
  } finally {
    signal?.removeEventListener('abort', forward)
    stop.abort()
    // Not awaited: a source that is waiting for its next text would only answer after it.
    void Promise.resolve(source.return?.()).catch(() => {})
  }
}

function iterate<T>(texts: Iterable<T> | AsyncIterable<T>): AsyncIterator<T> | Iterator<T> {
  if (typeof texts === 'object' && texts !== null) {
    if (Symbol.asyncIterator in texts) return texts[Symbol.asyncIterator]()
    if (Symbol.iterator in texts) return texts[Symbol.iterator]()
  }
  throw new MambaError(
    'INVALID_ARGUMENT',
    `the texts are ${shown(texts)}, expected an iterable or an async iterable`,
  )
}

/** Up to `count` items; fewer at the end. */
async function takeBatch<T>(
  source: AsyncIterator<T> | Iterator<T>,
  count: number,
  signal: AbortSignal,
): Promise<T[]> {
  const batch: T[] = []
  while (batch.length < count) {
    const { done, value } = await untilAborted(source.next(), signal)
    if (done) break
    batch.push(value)
  }
  return batch
}
