import { begin, queuedNames, readStanding, type Queued } from './call.js'
import { MambaError } from './errors.js'
import { toIds } from './input.js'
import type { NativeCallback, NativeEvent, NativeGenerateOptions, NativeJob, NativeToken } from './native.js'
import { Options, invalid } from './options.js'

/**
 * How text is generated. The steps, in this order: logit bias, penalties, temperature, top-k, top-p, min-p,
 * a draw.
 */
export interface GenerateOptions extends Queued {
  /** At most so many new tokens, from 1. Default: 256. */
  maxTokens?: number
  /** Divides the logits. 0 is greedy: the likeliest token, always. Default: 0. */
  temperature?: number
  /** Keep the so many likeliest tokens; 0 is off. Default: 0. */
  topK?: number
  /** Keep the fewest of the likeliest tokens whose probabilities sum to this, 0 to 1; 1 is off. Default: 1. */
  topP?: number
  /** Keep the tokens at least this likely relative to the likeliest, 0 to 1; 0 is off. Default: 0. */
  minP?: number
  /** Above 1 makes tokens of the window unlikelier: divides positive logits, multiplies others. Default: 1. */
  repetitionPenalty?: number
  /** Subtracted from a token's logit for each time that the window has it. Default: 0. */
  frequencyPenalty?: number
  /** Subtracted from the logit of each token that the window has. Default: 0. */
  presencePenalty?: number
  /**
   * How many of the context's last tokens the penalties look at, at most 65,536. A session remembers 256, or
   * as many as its generations asked for so far. Default: 256.
   */
  penaltyWindow?: number
  /**
   * Key of the random draws, an integer from 0 to 2^53 − 1. A draw depends only on it and on the position, so
   * the same call gives the same text, whatever else the model does. Default: a session's own, or a new one.
   */
  seed?: number
  /** Added to the logits of token ids. */
  logitBias?: ReadonlyMap<number, number> | Readonly<Record<number, number>>
  /** Generation ends before the first of these texts; none of it is returned. */
  stop?: string | readonly string[]
  /** Generation ends at these token ids, as at the model's end-of-text ids. */
  stopTokens?: readonly number[] | Uint32Array
  /** Do not end at the model's end-of-text ids. Default: false. */
  ignoreEos?: boolean
  /** Give the so many likeliest tokens with each one, at most 100. Default: 0. */
  logprobs?: number
}

const names = [
  'maxTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'frequencyPenalty',
  'presencePenalty',
  'penaltyWindow',
  'seed',
  'logitBias',
  'stop',
  'stopTokens',
  'ignoreEos',
  'logprobs',
  ...queuedNames,
] as const satisfies readonly (keyof GenerateOptions)[]

/** A token and the natural logarithm of its probability. */
export interface TokenLogprob {
  token: number
  logprob: number
}

/** One step of a generation. */
export interface GeneratedToken extends TokenLogprob {
  /**
   * The text that became certain with this token. Empty while a UTF-8 character or a possible stop text is
   * incomplete; over all steps it adds up to the whole text.
   */
  text: string
  /** Its id. */
  token: number
  /** Natural logarithm of its probability by the model: before bias, penalties and temperature. */
  logprob: number
  /** With `logprobs`: the likeliest tokens, likeliest first. */
  top?: TokenLogprob[]
}

/** What a generation took. */
export interface Usage {
  /** Tokens of the prompt (for a session: not those of earlier calls). */
  promptTokens: number
  /** How many of them were not computed, as the state after them was in the prefix cache. */
  cachedTokens: number
  /** Tokens that were generated. */
  completionTokens: number
  /** Seconds from its turn in the engine to its first token. */
  prefillSeconds: number
  /** Seconds from its first token to its last. */
  decodeSeconds: number
}

/** A finished generation. */
export interface Completion {
  /** The whole text, without prompt and stop text. */
  text: string
  /** The generated ids; a stop token is the last of them. */
  tokens: Uint32Array
  /** Natural logarithm of each token's probability. */
  logprobs: Float32Array
  /** With the option `logprobs`: the likeliest tokens at each position, likeliest first. */
  top?: TokenLogprob[][]
  /** `length`: `maxTokens` were generated. `stop`: a stop text, a stop token or the model's end of text. */
  finishReason: 'length' | 'stop'
  usage: Usage
}

/** Options as the addon takes them, and the signal. */
export function readGenerateOptions(options: GenerateOptions | undefined): {
  native: NativeGenerateOptions
  signal: AbortSignal | undefined
} {
  const read = new Options(options, names)
  const [logitBiasIds, logitBias] = readLogitBias(read.any('logitBias'))
  return {
    signal: read.signal(),
    native: {
      maxTokens: read.integer('maxTokens', 1) ?? 256,
      temperature: read.number('temperature') ?? 0,
      topK: read.integer('topK') ?? 0,
      topP: read.number('topP') ?? 1,
      minP: read.number('minP') ?? 0,
      repetitionPenalty: read.number('repetitionPenalty') ?? 1,
      frequencyPenalty: read.number('frequencyPenalty') ?? 0,
      presencePenalty: read.number('presencePenalty') ?? 0,
      penaltyWindow: read.integer('penaltyWindow') ?? 256,
      seed: read.integer('seed', 0, Number.MAX_SAFE_INTEGER),
      logitBiasIds,
      logitBias,
      stop: readStop(read.any('stop')),
      stopTokens: toIds((read.any('stopTokens') as number[]) ?? [], 'the option `stopTokens`'),
      ignoreEos: read.boolean('ignoreEos') ?? false,
      logprobs: read.integer('logprobs') ?? 0,
      stream: false,
      standing: readStanding(read),
    },
  }
}

function readStop(stop: unknown): string[] {
  const list = stop === undefined ? [] : typeof stop === 'string' ? [stop] : stop
  if (!Array.isArray(list)) throw invalid('stop', stop, 'a string or an array of strings')
  list.forEach((text, i) => {
    if (typeof text !== 'string') throw invalid(`stop[${i}]`, text, 'a string')
  })
  return list
}

function readLogitBias(bias: unknown): [Uint32Array, Float32Array] {
  if (bias !== undefined && (typeof bias !== 'object' || bias === null || Array.isArray(bias))) {
    throw invalid('logitBias', bias, 'a Map or an object of token ids and numbers')
  }
  const entries = bias instanceof Map ? [...bias] : Object.entries(bias ?? {})
  for (const [id, value] of entries) {
    if (typeof value !== 'number') throw invalid(`logitBias[${String(id)}]`, value, 'a number')
  }
  const ids = toIds(
    entries.map(([id]) => (id === '' ? NaN : Number(id))),
    'the option `logitBias`',
  )
  return [ids, Float32Array.from(entries, ([, value]) => value as number)]
}

/** Starts a generation in the addon with options that {@link readGenerateOptions} read. */
export type StartGeneration = (
  native: NativeGenerateOptions,
  onEvent: NativeCallback<NativeEvent>,
) => NativeJob

/** Runs a generation for its result alone. */
export async function complete(
  start: StartGeneration,
  options: GenerateOptions | undefined,
): Promise<Completion> {
  const { native, signal } = readGenerateOptions(options)
  native.stream = native.logprobs > 0 // the addon gives the likeliest tokens with each step only
  return new Promise((resolve, reject) => {
    const job = begin<NativeEvent>(
      signal,
      (last) =>
        start(native, (error, event) => {
          if (error || event.type !== 'tokens') last(error, event)
        }),
      (error, event) => {
        if (error) return reject(error)
        const top = native.stream ? job.take().map((token) => toToken(token).top ?? []) : undefined
        resolve(toCompletion(event, top))
      },
    )
  })
}

/** Tokens that wait to be taken when a generation rests; it goes on when half of them are left. */
const MAX_UNREAD = 1000

/**
 * A generation under way: iterate over it for the tokens as they come, await `result` for the whole.
 *
 * It has been started, whether anyone iterates or not; tokens that nobody has taken yet wait here. Once someone iterates,
 * it rests while a thousand of them wait, and takes no place of other calls meanwhile; so `result` comes only when they
 * are taken. Leaving a `for await` loop early ends it.
 *
 * @example
 * const stream = model.generate('The ship')
 * for await (const { text } of stream) process.stdout.write(text)
 * const { usage } = await stream.result
 */
export class Generation implements AsyncIterableIterator<GeneratedToken> {
  /** The finished generation. Rejects with whatever ended it early; that counts as handled. */
  readonly result: Promise<Completion>
  readonly #tokens: GeneratedToken[] = []
  /** Of all tokens so far, where they were asked for. */
  readonly #top: TokenLogprob[][] | undefined
  #finished = false
  #error: MambaError | undefined
  #wake: (() => void)[] = []
  /** Is told instead, and takes the tokens itself. */
  #watcher: (() => void) | undefined
  #job: ReturnType<typeof begin> | undefined
  #iterated = false
  #paused = false

  /** @internal */
  constructor(start: StartGeneration, options: GenerateOptions | undefined) {
    this.#top = options?.logprobs ? [] : undefined
    this.result = new Promise((resolve, reject) => {
      const end = (error: MambaError | null, event?: NativeEvent) => {
        this.#receive()
        this.#finished = true
        this.#error = error ?? undefined
        this.#changed()
        if (error) reject(error)
        else resolve(toCompletion(event!, this.#top))
      }
      try {
        const { native, signal } = readGenerateOptions(options)
        native.stream = true
        this.#job = begin<NativeEvent>(
          signal,
          (last) =>
            start(native, (error, event) => {
              if (error || event.type !== 'tokens') return last(error, event)
              if (!this.#watcher) this.#receive()
              this.#changed()
            }),
          (error, event) => end(error as MambaError | null, event),
        )
      } catch (error) {
        end(error as MambaError)
      }
    })
    this.result.catch(() => {}) // who only iterates sees the error there
  }

  /** Takes the tokens that came. */
  #receive() {
    for (const native of this.#job?.take() ?? []) {
      const token = toToken(native)
      if (token.top) this.#top?.push(token.top)
      this.#tokens.push(token)
    }
    if (this.#iterated && this.#tokens.length >= MAX_UNREAD) this.#pause(true)
  }

  #pause(paused: boolean) {
    if (this.#paused === paused) return
    this.#paused = paused
    this.#job?.pause(paused)
  }

  #changed() {
    for (const wake of this.#wake.splice(0)) wake()
    this.#watcher?.()
  }

  /**
   * Calls `changed` when there are tokens to `take`, then again only after they were taken, and at the end: for who takes
   * them in batches, which costs much less than iterating.
   *
   * @internal
   */
  watch(changed: () => void): void {
    this.#watcher = changed
    if (this.#tokens.length > 0 || this.#finished) changed()
  }

  /**
   * The tokens that wait.
   *
   * @internal
   */
  take(): GeneratedToken[] {
    this.#receive()
    return this.#tokens.splice(0)
  }

  /** The next token. Rejects once, with what ended the generation early. */
  async next(): Promise<IteratorResult<GeneratedToken, undefined>> {
    this.#iterated = true
    while (this.#tokens.length === 0 && !this.#finished) {
      await new Promise<void>((wake) => this.#wake.push(wake))
    }
    const value = this.#tokens.shift()
    if (this.#tokens.length <= MAX_UNREAD / 2) this.#pause(false)
    if (value) return { done: false, value }
    const error = this.#error
    this.#error = undefined
    if (error) throw error
    return { done: true, value: undefined }
  }

  /** Ends the generation; resolves when the engine has let go of it. */
  async return(): Promise<IteratorResult<GeneratedToken, undefined>> {
    this.#job?.cancel()
    await this.result.catch(() => {})
    this.#tokens.length = 0
    this.#error = undefined
    return { done: true, value: undefined }
  }

  /** Itself: `for await` takes it as it is, and it goes on where it was. */
  [Symbol.asyncIterator](): this {
    return this
  }
}

function toToken({ text, token, logprob, topIds, topLogprobs }: NativeToken): GeneratedToken {
  const step: GeneratedToken = { text, token, logprob }
  if (topIds && topLogprobs) {
    step.top = Array.from(topIds, (id, i) => ({ token: id, logprob: topLogprobs[i]! }))
  }
  return step
}

function toCompletion(event: NativeEvent, top: TokenLogprob[][] | undefined): Completion {
  if (event.type !== 'generated') throw new MambaError('INTERNAL', `a generation ended with ${event.type}`)
  const { text, tokens, logprobs, finishReason, ...usage } = event
  const { promptTokens, cachedTokens, completionTokens, prefillSeconds, decodeSeconds } = usage
  return {
    text,
    tokens,
    logprobs,
    ...(top && { top }),
    finishReason: finishReason as Completion['finishReason'],
    usage: { promptTokens, cachedTokens, completionTokens, prefillSeconds, decodeSeconds },
  }
}
