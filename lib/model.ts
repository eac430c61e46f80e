import { completeBatch } from './batch.js'
import {
  call,
  callWithProgress,
  direct,
  queuedNames,
  readStanding,
  type Abortable,
  type Queued,
} from './call.js'
import {
  embed,
  embedStream,
  type EmbeddedBatch,
  type EmbedOptions,
  type EmbedStreamOptions,
} from './embed.js'
import { ChatTemplate, type ChatMessage } from './chat-template.js'
import { bindingFor } from './cuda.js'
import { MambaError } from './errors.js'
import { complete, Generation, type Completion, type GenerateOptions } from './generate.js'
import { toIds, toNative, type TextOrIds } from './input.js'
import type { NativeEvent, NativeInfo, NativeLoadProgress, NativeModel } from './native.js'
import { invalid, Options, shown } from './options.js'
import { restore, Session } from './session.js'
import { resolveSource, toPath } from './source.js'
import { statsStream, type Stats, type StatsStreamOptions } from './stats.js'
import { Tokenizer } from './tokenizer.js'

/** Where a model can run. */
export type Device = 'cpu' | 'cuda'
/**
 * The type that matrices are kept in; states and sums are always f32. `q8_0` (8.5 bits a weight) and `q4_k` (4.5) are
 * made at load from whatever the checkpoint holds; products with them take activations of 8 bits (on a GPU f16).
 */
export type DType = 'f32' | 'bf16' | 'f16' | 'q8_0' | 'q4_k'

/** How a model is loaded and run. */
export interface LoadOptions extends Abortable {
  /**
   * Where it runs. `cuda` is the first NVIDIA GPU, and needs the package `@node-mamba/cuda`. `auto` is `cuda` where
   * that is installed and everything that it needs is there (`diagnose().cuda` says what is not), and otherwise
   * `cpu`; for `q8_0` and `q4_k` it is `cpu`. Default: `auto`.
   */
  device?: Device | 'auto'
  /** Type that the matrices are kept in. Default: as in the checkpoint. */
  dtype?: DType
  /** Threads to compute on, 1 to 1024. Default: one for each processor that the process may use. */
  threads?: number
  /**
   * Map the weights file into memory instead of reading it. A mapped file must not be truncated while the
   * model loads: the operating system would end the process. Default: true.
   */
  mmap?: boolean
  /** Refuse weights that are NaN or infinite (`TENSOR_NOT_FINITE`). Reads all of them once more. Default: false. */
  validate?: boolean
  /** Path of a tokenizer.json to use instead of the checkpoint's. */
  tokenizer?: string | URL
  /**
   * Results are equal to the bit whatever else is computed at the same time. On a CPU this costs nothing in f32
   * and f16, which always are; with bf16 weights it leaves out the tile unit (AMX) where there is one, whose
   * results differ by some 3e-6 with the number of tokens computed together. Default: false.
   */
  deterministic?: boolean
  /** Sequences that are computed together, 1 to 4096. Each has a state of `model.stateBytes`. Default: 32. */
  maxBatch?: number
  /** Requests that may wait or run at a time; one more is refused with `QUEUE_FULL`. Default: 1024. */
  queueLimit?: number
  /**
   * Milliseconds, from 1. While someone iterates over a generation, the prompts of others are computed in pieces that take
   * no longer, by the speed that the engine has measured (but of 16 tokens at least). Default: 100.
   */
  maxStall?: number
  /**
   * Keeps states after the beginnings that prompts share (a system prompt, examples), so that the third prompt that begins
   * so does not compute it again; {@link Mamba.cachePrefix} does it at once. What was used least recently goes first.
   * `bytes` is what states (each `model.stateBytes`) and the paths to them may take; 0 is off. On a GPU the newest
   * `maxBatch` of them lie in its memory, the others in the computer's. Default: off.
   */
  prefixCache?: { bytes: number }
  /**
   * Adapters over this one model, by name: folders that `train` (`result.adapter`) or PEFT wrote. Calls choose one by
   * its name, `{ adapter: 'name' }`, and those with different ones, or none, are computed together. Default: none.
   */
  adapters?: Readonly<Record<string, string | URL>>
  /** Called as the weights come in. An error that it throws ends the load and is what `load` rejects with. */
  onProgress?: (progress: LoadProgress) => void
}

/** How far a load has come. */
export interface LoadProgress {
  /** `validate` comes first, if it was asked for. */
  stage: 'validate' | 'weights'
  /** Bytes dealt with in this stage, in the type that the model is kept in. */
  loadedBytes: number
  /** Bytes in all. */
  totalBytes: number
}

const loadNames = [
  'device',
  'dtype',
  'threads',
  'mmap',
  'validate',
  'tokenizer',
  'deterministic',
  'maxBatch',
  'queueLimit',
  'maxStall',
  'prefixCache',
  'adapters',
  'onProgress',
  'signal',
] as const satisfies readonly (keyof LoadOptions)[]

/** A model's shape, by the names of the official implementation's config.json, everything resolved. */
export interface MambaConfig {
  readonly d_model: number
  readonly n_layer: number
  readonly vocab_size: number
  readonly ssm_cfg: {
    readonly layer: 'Mamba1'
    readonly d_state: number
    readonly d_conv: number
    readonly expand: number
    readonly dt_rank: number
    readonly conv_bias: boolean
    readonly bias: boolean
  }
  readonly rms_norm: boolean
  readonly norm_epsilon: number
  readonly residual_in_fp32: boolean
  readonly fused_add_norm: boolean
  readonly pad_vocab_size_multiple: number
  readonly tie_embeddings: boolean
  readonly bos_token_id?: number
  readonly eos_token_id?: readonly number[]
}

/** How `forward` computes. */
export interface ForwardOptions extends Queued {
  /** Of every position, or of the last one only. Default: `all`. */
  logits?: 'all' | 'last'
}

/** What `forward` computed. */
export interface ForwardResult {
  /** Row-major [rows, vocab]: entry `row * vocab + id` is the logit of `id` after the token of that row. */
  logits: Float32Array
  /** [length or 1, `model.vocabSize`]. */
  shape: [rows: number, vocab: number]
}

/** How likely a text is. */
export interface Score {
  /** All ids of the text. */
  tokens: Uint32Array
  /** Natural logarithm of the probability of `tokens[i + 1]` given those before it. */
  logprobs: Float32Array
  /** Mean negative log-likelihood of a token, in nats. */
  meanNll: number
  /** exp(`meanNll`). */
  perplexity: number
}

/**
 * A loaded Mamba model. Everything that it computes runs on threads of its own, many calls at a time.
 *
 * Its memory is freed by {@link Mamba.dispose}, or when it is garbage-collected. It does not keep the process
 * alive; calls under way do.
 *
 * @example
 * import { Mamba } from 'node-mamba'
 *
 * const model = await Mamba.load()
 * try {
 *   const { text } = await model.complete('The ship', { maxTokens: 30 })
 *   console.log(text)
 * } finally {
 *   await model.dispose()
 * }
 */
export class Mamba {
  readonly #handle: NativeModel
  readonly #maxInFlight: number
  #disposed: Promise<void> | undefined
  #chatTemplate: Promise<ChatTemplate | undefined> | undefined

  /** The folder or file that it was loaded from. */
  readonly path: string

  /** The model's shape. */
  readonly config: MambaConfig
  /** Where it runs. */
  readonly device: Device
  /** Type that its matrices are kept in. */
  readonly dtype: DType
  /** Threads that compute. */
  readonly threads: number
  /** Length of a row of logits: the vocabulary with its padding. */
  readonly vocabSize: number
  /** Number of parameters. */
  readonly parameters: number
  /** Bytes of its weights in memory. */
  readonly weightBytes: number
  /** Bytes of one sequence's state. */
  readonly stateBytes: number
  /** Names of its adapters. */
  readonly adapters: readonly string[]
  /** Ids that end a text. */
  readonly eosTokenIds: readonly number[]
  /** Tells models apart, whatever their dtype, device or file format: a session belongs to a fingerprint. */
  readonly fingerprint: string
  /** Text to ids and back. */
  readonly tokenizer: Tokenizer

  private constructor(native: NativeModel, info: NativeInfo, path: string, maxInFlight: number) {
    this.#handle = native
    this.path = path
    this.#maxInFlight = maxInFlight
    this.config = frozen(JSON.parse(info.config) as MambaConfig)
    this.device = info.device as Device
    this.dtype = info.dtype as DType
    this.threads = info.threads
    this.vocabSize = info.vocabSize
    this.parameters = info.parameters
    this.weightBytes = info.weightBytes
    this.stateBytes = info.stateBytes
    this.adapters = Object.freeze(info.adapters)
    this.eosTokenIds = Object.freeze(info.eosTokenIds)
    this.fingerprint = info.fingerprint
    this.tokenizer = new Tokenizer(this.#native, info.tokenizerSize)
  }

  /**
   * Loads a model.
   *
   * @param source One of
   * - nothing or `'default'`: the package `@node-mamba/model-default`;
   * - a path that begins with `./`, `../` or `/`, or a `file:` URL: a folder with config.json and weights
   *   (model.safetensors, a sharded index, or pytorch_model.bin), or the weights file in it;
   * - `'owner/name'`: a model of the Hugging Face hub (not in this version: `HUB_UNAVAILABLE`).
   * @throws {@link MambaError} `MODEL_NOT_INSTALLED`, `INVALID_ARGUMENT`, `OPTION_INVALID`, `FILE_NOT_FOUND`,
   * `CONFIG_INVALID`, `CHECKPOINT_INVALID`, `PICKLE_UNSAFE`, `TENSOR_MISSING`, `TENSOR_SHAPE`,
   * `TENSOR_DTYPE`, `TENSOR_NOT_FINITE`, `TOKENIZER_INVALID`, `TOKENIZER_MISMATCH`, `DEVICE_UNAVAILABLE`,
   * `OUT_OF_MEMORY`, `ABORTED`, `BINDING_NOT_FOUND`; with `device: 'cuda'` also `DEVICE_LOST` and
   * the codes that begin with `CUDA_`
   */
  static async load(source: string | URL = 'default', options?: LoadOptions): Promise<Mamba> {
    const read = new Options(options, loadNames)
    const signal = read.signal()
    const onProgress = read.function<(progress: NativeLoadProgress) => void>('onProgress')
    const tokenizer = read.any('tokenizer') as string | URL | undefined
    const queueLimit = read.integer('queueLimit') ?? 1024
    const native = {
      device: read.string('device'),
      dtype: read.string('dtype'),
      threads: read.integer('threads'),
      mmap: read.boolean('mmap'),
      validate: read.boolean('validate'),
      tokenizer: tokenizer === undefined ? undefined : toPath(tokenizer),
      deterministic: read.boolean('deterministic'),
      maxBatch: read.integer('maxBatch') ?? 32,
      queueLimit,
      maxStall: read.integer('maxStall', 1),
      prefixCache: readPrefixCache(read.any('prefixCache')),
      adapters: readAdapters(read.any('adapters')),
    }
    const path = resolveSource(source)
    const { load, NativeModel } = await bindingFor(native.device)
    const model = await callWithProgress<NativeLoadProgress, NativeModel>(
      signal,
      (onEvent) => load(path, native, onEvent),
      (event) => event instanceof NativeModel,
      onProgress,
    )
    return new Mamba(model, model.info(), path, Math.min(native.maxBatch, queueLimit))
  }

  /** The handle, unless the model was disposed of. */
  readonly #native = (): NativeModel => {
    if (this.#disposed) {
      throw new MambaError('MODEL_DISPOSED', 'the model was disposed of; load it again to use it')
    }
    return this.#handle
  }

  /**
   * The logits of a text: for each position the unnormalized log-probabilities of the next token. All of a
   * long text take length × `vocabSize` × 4 bytes.
   *
   * @throws {@link MambaError} `EMPTY_PROMPT`, `TOKEN_OUT_OF_RANGE`, `TOKENIZER_MISSING`, `OPTION_INVALID`,
   * `QUEUE_FULL`, `ABORTED`, `OUT_OF_MEMORY`, `DEVICE_LOST`, `MODEL_DISPOSED`
   */
  async forward(text: TextOrIds, options?: ForwardOptions): Promise<ForwardResult> {
    const read = new Options(options, ['logits', ...queuedNames])
    const all = (read.oneOf('logits', ['all', 'last']) ?? 'all') === 'all'
    const [input, standing] = [toNative(text), readStanding(read)]
    const event = await call<NativeEvent>(read.signal(), (last) =>
      this.#native().forward(input, all, standing, last),
    )
    if (event.type !== 'logits') throw new MambaError('INTERNAL', `forward ended with ${event.type}`)
    return { logits: event.data, shape: [event.rows, this.vocabSize] }
  }

  /**
   * How likely the model finds a text of at least two tokens.
   *
   * @throws {@link MambaError} as {@link Mamba.forward}
   */
  async score(text: TextOrIds, options?: Queued): Promise<Score> {
    const read = new Options(options, queuedNames)
    const [input, standing] = [toNative(text), readStanding(read)]
    const event = await call<NativeEvent>(read.signal(), (last) =>
      this.#native().score(input, standing, last),
    )
    if (event.type !== 'scores') throw new MambaError('INTERNAL', `score ended with ${event.type}`)
    const meanNll = -event.logprobs.reduce((sum, logprob) => sum + logprob, 0) / event.logprobs.length
    return { tokens: event.ids, logprobs: event.logprobs, meanNll, perplexity: Math.exp(meanNll) }
  }

  /**
   * Continues a prompt, token by token. Errors come from the iteration and from `result`.
   *
   * @example
   * for await (const { text } of model.generate('The ship', { temperature: 0.8, topP: 0.95 })) {
   *   process.stdout.write(text)
   * }
   */
  generate(prompt: TextOrIds, options?: GenerateOptions): Generation {
    return new Generation(
      (native, onEvent) => this.#native().generate(toNative(prompt, 'the prompt'), native, onEvent),
      options,
    )
  }

  /**
   * Continues a prompt and gives the whole.
   *
   * @throws {@link MambaError} `EMPTY_PROMPT`, `TOKEN_OUT_OF_RANGE`, `TOKENIZER_MISSING`, `OPTION_INVALID`,
   * `INVALID_ARGUMENT`, `LOGITS_NOT_FINITE`, `QUEUE_FULL`, `ABORTED`, `OUT_OF_MEMORY`, `DEVICE_LOST`,
   * `MODEL_DISPOSED`
   */
  complete(prompt: TextOrIds, options?: GenerateOptions): Promise<Completion> {
    return complete(
      (native, onEvent) => this.#native().generate(toNative(prompt, 'the prompt'), native, onEvent),
      options,
    )
  }

  /**
   * The checkpoint's chat template, undefined where it has none. Needs the package `@huggingface/jinja`.
   *
   * @throws {@link MambaError} `CHAT_TEMPLATE_INVALID`, `PEER_MISSING`, `IO_ERROR`
   */
  chatTemplate(): Promise<ChatTemplate | undefined> {
    return (this.#chatTemplate ??= ChatTemplate.read(this.path))
  }

  /**
   * Answers a conversation, token by token, with the checkpoint's chat template. The generation ends where the
   * assistant's turn does.
   *
   * @throws {@link MambaError} `CHAT_TEMPLATE_MISSING`, `CHAT_TEMPLATE_FAILED`, `CHAT_TEMPLATE_TIMEOUT`,
   * `CHAT_TEMPLATE_INVALID`, `INVALID_ARGUMENT`, `PEER_MISSING`, `IO_ERROR`; others come from the generation
   *
   * @example
   * const answer = await model.chat([{ role: 'user', content: 'Who are you?' }])
   * for await (const { text } of answer) process.stdout.write(text)
   */
  async chat(messages: readonly ChatMessage[], options?: GenerateOptions): Promise<Generation> {
    const template = await this.chatTemplate()
    if (!template) {
      throw new MambaError('CHAT_TEMPLATE_MISSING', `the checkpoint at ${this.path} has no chat template`)
    }
    const stopTokens = [
      ...toIds(options?.stopTokens ?? [], 'the option `stopTokens`'),
      ...template.endOfTurn(this.tokenizer),
    ]
    return this.generate(await template.render(messages), { ...options, stopTokens })
  }

  /**
   * Continues several prompts, together, and gives the results in their order. Each is what `complete` would
   * give with the same options; with a seed, all have the same one. One failure rejects all and ends the rest.
   *
   * @throws {@link MambaError} as {@link Mamba.complete}
   */
  async completeBatch(prompts: readonly TextOrIds[], options?: GenerateOptions): Promise<Completion[]> {
    if (!Array.isArray(prompts)) {
      throw new MambaError('INVALID_ARGUMENT', `the prompts are ${shown(prompts)}, expected an array`)
    }
    const starts = (prompts as readonly TextOrIds[]).map((prompt, i) => {
      const input = toNative(prompt, `prompt ${i}`)
      return ((native, onEvent) => this.#native().generate(input, native, onEvent)) as Parameters<
        typeof complete
      >[0]
    })
    return completeBatch(starts, options, this.#maxInFlight)
  }

  /**
   * Texts as vectors: a Float32Array for one text (or the ids of one), an array of them, in their order, for
   * an array of texts. They are views of one buffer.
   *
   * @throws {@link MambaError} `EMPTY_PROMPT`, `TOKEN_OUT_OF_RANGE`, `TOKENIZER_MISSING`, `OPTION_INVALID`,
   * `INVALID_ARGUMENT`, `QUEUE_FULL`, `ABORTED`, `OUT_OF_MEMORY`, `DEVICE_LOST`, `MODEL_DISPOSED`
   *
   * @example
   * const [a, b] = await model.embed(['a ship at sea', 'a boat on the water'])
   * const similarity = a.reduce((sum, x, i) => sum + x * b[i], 0)
   */
  embed(texts: readonly TextOrIds[], options?: EmbedOptions): Promise<Float32Array[]>
  embed(text: TextOrIds, options?: EmbedOptions): Promise<Float32Array>
  async embed(
    texts: TextOrIds | readonly TextOrIds[],
    options?: EmbedOptions,
  ): Promise<Float32Array | Float32Array[]> {
    return embed(this.#native(), texts, options)
  }

  /**
   * Any number of texts as vectors, batch by batch, in bounded memory: while the consumer has one batch, the
   * next one is read and computed, and the source waits.
   *
   * @example
   * for await (const { offset, vectors } of model.embedStream(linesOfAFile)) await store(offset, vectors)
   */
  async *embedStream<T extends TextOrIds>(
    texts: Iterable<T> | AsyncIterable<T>,
    options?: EmbedStreamOptions,
  ): AsyncGenerator<EmbeddedBatch<T>, void, undefined> {
    yield* embedStream(this.#native(), texts, options)
  }

  /**
   * An empty session.
   *
   * @throws {@link MambaError} `MODEL_DISPOSED`
   */
  session(): Session {
    return new Session(this.#native, this.#native().session())
  }

  /**
   * A session that was saved: by its file's path (or `file:` URL), or by its bytes. It goes on exactly as the
   * saved one would have. The same model in another dtype or on another device may restore it, too.
   *
   * @throws {@link MambaError} `SESSION_INVALID`, `SESSION_VERSION`, `SESSION_MISMATCH`, `FILE_NOT_FOUND`,
   * `IO_ERROR`, `MODEL_DISPOSED`
   */
  restore(from: string | URL | Uint8Array): Promise<Session> {
    return restore(this.#native, from)
  }

  /**
   * Keeps the state after a text in the prefix cache: prompts whose tokens begin with the text's do not compute it again
   * (`usage.cachedTokens` says how many they were). Resolves with the number of tokens. A text that ends within a word may
   * have other tokens at its end than the prompt; end it with a line break.
   *
   * @throws {@link MambaError} `OPTION_INVALID` where the model was loaded without `prefixCache`; else as
   * {@link Mamba.forward}
   *
   * @example
   * const model = await Mamba.load('default', { prefixCache: { bytes: 64e6 } })
   * await model.cachePrefix(system)
   * await model.complete(system + question)
   */
  async cachePrefix(text: TextOrIds, options?: Queued): Promise<number> {
    const read = new Options(options, queuedNames)
    const [input, standing] = [toNative(text), readStanding(read)]
    const event = await call<NativeEvent>(read.signal(), (last) =>
      this.#native().cachePrefix(input, standing, last),
    )
    if (event.type !== 'cached') throw new MambaError('INTERNAL', `caching a prefix ended with ${event.type}`)
    return event.tokens
  }

  /**
   * What the engine does and how fast, now. Costs the engine nothing.
   *
   * @throws {@link MambaError} `MODEL_DISPOSED`
   */
  stats(): Stats {
    return direct(() => this.#native().stats())
  }

  /**
   * {@link Mamba.stats} again and again, until the model is disposed of. Does not keep the process alive.
   *
   * @example
   * for await (const { running, generatedTokensPerSecond } of model.statsStream({ interval: 5000 })) {
   *   console.log(running, generatedTokensPerSecond)
   * }
   */
  statsStream(options?: StatsStreamOptions): AsyncGenerator<Stats, void, undefined> {
    return statsStream(this.#native, () => this.#disposed !== undefined, options)
  }

  /**
   * Ends everything under way with `MODEL_DISPOSED` and frees the model's memory; resolves when it is free.
   * May be called again.
   */
  dispose(): Promise<void> {
    void this.#chatTemplate?.then((template) => template?.close()).catch(() => {})
    return (this.#disposed ??= new Promise((resolve) => {
      direct(() => this.#handle.dispose(() => resolve()))
    }))
  }

  /** `dispose`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }
}

/** The adapters' names and folders. */
function readAdapters(adapters: unknown): { name: string; path: string }[] {
  if (adapters === undefined) return []
  if (typeof adapters !== 'object' || adapters === null || Array.isArray(adapters)) {
    throw invalid('adapters', adapters, 'an object of names and folders')
  }
  return Object.entries(adapters).map(([name, path]) => ({ name, path: toPath(path as string | URL) }))
}

/** Bytes of the prefix cache. */
function readPrefixCache(value: unknown): number | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'object' || value === null) {
    throw invalid('prefixCache', value, '{ bytes }, an object')
  }
  const { bytes, ...others } = value as { bytes?: unknown }
  const [other] = Object.keys(others)
  if (other !== undefined)
    throw invalid(`prefixCache.${other}`, (others as never)[other], 'nothing; there is `bytes`')
  if (!Number.isSafeInteger(bytes) || (bytes as number) < 0) {
    throw invalid('prefixCache.bytes', bytes, 'an integer from 0')
  }
  return bytes as number
}

function frozen<T extends object>(value: T): T {
  for (const inner of Object.values(value)) if (typeof inner === 'object' && inner !== null) frozen(inner)
  return Object.freeze(value)
}
