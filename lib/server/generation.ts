// What /v1/completions and /v1/chat/completions have in common: options, several answers at once, their tokens.
import { randomInt } from 'node:crypto'
import type { Queued } from '../call.js'
import type { Completion, GeneratedToken, GenerateOptions, Generation } from '../generate.js'
import type { TextOrIds } from '../input.js'
import type { Mamba } from '../model.js'
import { ApiError } from './errors.js'
import type { Limits } from './options.js'
import type { SamplingRequest } from './schemas.js'

/** Starts one answer. */
export type Start = (options: GenerateOptions) => Generation

/** The library's options for answer `choice`, but for `maxTokens` and `logprobs`. */
export function generateOptions(body: SamplingRequest, choice: number, queued: Queued): GenerateOptions {
  const options: GenerateOptions = {
    temperature: body.temperature ?? 1,
    topP: body.top_p ?? 1,
    topK: body.top_k ?? 0,
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    frequencyPenalty: body.frequency_penalty ?? 0,
    presencePenalty: body.presence_penalty ?? 0,
    logitBias: body.logit_bias ?? {},
    stop: body.stop ?? [],
    ...queued,
  }
  // OpenAI's seeds may be negative; ours are below 2^53. Without one every answer is another, of a session, too.
  const seed = body.seed == null ? randomInt(2 ** 48 - 1) : BigInt(body.seed) + BigInt(choice)
  options.seed = Number(BigInt.asUintN(53, BigInt(seed)))
  return options
}

/** @throws {@link ApiError} 400 */
export function checkMaxTokens(asked: number | null | undefined, limits: Limits, param: string): void {
  if ((asked ?? 0) <= limits.completionTokens) return
  const message = `${param} is ${asked}, expected at most ${limits.completionTokens}`
  throw new ApiError(400, 'max_tokens_too_large', message, { param })
}

/** @throws {@link ApiError} 400 */
export function checkChoices(prompts: number, n: number, limits: Limits): void {
  if (prompts * n <= limits.choices) return
  const message = `${prompts} prompts × n ${n} are ${prompts * n} answers, expected at most ${limits.choices}`
  throw new ApiError(400, 'too_many_choices', message, { param: 'n' })
}

/** Characters that are tokenized at a time, so that a long text does not hold up the other requests. */
const SLICE = 16_384

/**
 * Refuses texts of more than `limit` tokens in all.
 *
 * @throws {@link ApiError} 400
 */
export async function checkPromptTokens(
  model: Mamba,
  prompts: readonly TextOrIds[],
  limit: number,
  param: string,
): Promise<void> {
  // A token is a byte at least, so most texts need not be looked at.
  const most = prompts.reduce((sum, text) => sum + (typeof text === 'string' ? 3 : 1) * text.length, 0)
  if (most <= limit) return
  let tokens = 0
  for (const prompt of prompts) {
    if (typeof prompt !== 'string') tokens += prompt.length
    else tokens += await countTokens(model, prompt, limit - tokens)
    if (tokens > limit) {
      const message = `the prompt has more tokens than this server takes, expected at most ${limit}`
      throw new ApiError(400, 'context_length_exceeded', message, { param })
    }
  }
}

/** Tokens of a text, slice by slice; stops counting above `limit`. */
export async function countTokens(model: Mamba, text: string, limit = Infinity): Promise<number> {
  let tokens = 0
  for (let from = 0; from < text.length && tokens <= limit;) {
    let to = Math.min(from + SLICE, text.length)
    // Before a space is where tokenizers part words anyway.
    if (to < text.length) {
      const space = text.lastIndexOf(' ', to)
      if (space > from) to = space
    }
    tokens += model.tokenizer.encode(text.slice(from, to)).length
    from = to
    if (from < text.length) await new Promise((resolve) => setImmediate(resolve))
  }
  return tokens
}

/** Something that happened to one of several answers. */
export type ChoiceEvent =
  { index: number; tokens: GeneratedToken[] } | { index: number; completion: Completion }

/** What is followed of a generation. */
export type Followed = Pick<Generation, 'watch' | 'take' | 'result'>

/**
 * Milliseconds between the parts of a stream, when there are so many streams: a write costs more than a token of a small
 * model does, and all of them together must leave the processor to the model.
 */
export const pace = (streams: number): number => Math.min(Math.max(40, 2 * streams), 100)

/**
 * Several generations as one stream of what happens. Nothing waits for the reader: what has not been read is kept,
 * at most all tokens of the answers.
 */
export class Choices {
  readonly #generations: readonly Followed[]
  readonly #pace: () => number
  #events: ChoiceEvent[] = []
  #running: number
  #error: unknown
  #failed = false
  #wake = () => {}
  /** Ends the rest between two parts. */
  #hurry = () => {}
  #given = -Infinity

  /** `pace` says how many milliseconds pass between two parts; the first one comes at once. */
  constructor(generations: readonly Followed[], pace: () => number) {
    this.#generations = generations
    this.#pace = pace
    this.#running = generations.length
    generations.forEach((generation, index) => {
      generation.watch(() => this.#wake())
      generation.result
        .then(
          (completion) => {
            this.#take(index)
            this.#events.push({ index, completion })
          },
          (error: unknown) => {
            if (!this.#failed) this.#error = error
            this.#failed = true
          },
        )
        .then(() => {
          this.#running--
          if (this.#failed || this.#running === 0) this.#hurry()
          this.#wake()
        })
    })
  }

  #take(index: number): void {
    const tokens = this.#generations[index]!.take()
    if (tokens.length > 0) this.#events.push({ index, tokens })
  }

  /** Resolves when there is something to say. Rejects if the first thing is an error. */
  async started(): Promise<void> {
    for (;;) {
      this.#generations.forEach((_, index) => this.#take(index))
      if (this.#events.length > 0) return
      if (this.#failed) throw this.#error
      if (this.#running === 0) return
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }

  /** All that has happened since the last call, waiting for something to happen; empty at the end. */
  async next(): Promise<ChoiceEvent[]> {
    // All streams write at the same times, so that the model is interrupted once for all of them.
    const pace = this.#pace()
    const rest = (Math.floor(this.#given / pace) + 1) * pace - performance.now()
    if (rest > 0 && this.#running > 0 && !this.#failed) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, rest)
        this.#hurry = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
    await this.started()
    this.#given = performance.now()
    const events = this.#events
    this.#events = []
    return events
  }
}

/** The text that became certain with these tokens. */
export const textOf = (tokens: readonly GeneratedToken[]): string => tokens.map(({ text }) => text).join('')

/** A token as an answer's log-probabilities name it. */
export interface NamedLogprob {
  /** Its text, or `token_id:…` where it is only a part of a character. */
  token: string
  logprob: number
  bytes: number[] | null
  top: { token: string; logprob: number; bytes: number[] | null }[]
}

/** Names a model's tokens; each one's name is made once. */
export class TokenNames {
  readonly #model: Mamba
  readonly #known = new Map<number, { token: string; bytes: number[] | null }>()

  constructor(model: Mamba) {
    this.#model = model
  }

  name(id: number): { token: string; bytes: number[] | null } {
    let name = this.#known.get(id)
    if (name) return name
    name = this.#make(id)
    if (id < this.#model.vocabSize) this.#known.set(id, name) // others are as many as requests make up
    return name
  }

  #make(id: number): { token: string; bytes: number[] | null } {
    const { tokenizer } = this.#model
    const text = tokenizer.available ? tokenizer.decode([id], { skipSpecialTokens: false }) : ''
    if (text === '' || text.includes('\ufffd')) return { token: `token_id:${id}`, bytes: null }
    return { token: text, bytes: [...Buffer.from(text)] }
  }

  logprob({ token, logprob, top }: Pick<GeneratedToken, 'token' | 'logprob' | 'top'>): NamedLogprob {
    return {
      ...this.name(token),
      logprob,
      top: (top ?? []).map((other) => ({ ...this.name(other.token), logprob: other.logprob })),
    }
  }
}

/**
 * The log-probabilities that belong to the text given so far. Those of a token whose text is not certain yet wait;
 * if it turns out to be a stop text or the end of text, they are never given.
 */
export class LogprobQueue {
  readonly #names: TokenNames
  #waiting: NamedLogprob[] = []

  constructor(names: TokenNames) {
    this.#names = names
  }

  /** Those that go with these tokens' text. */
  add(tokens: readonly GeneratedToken[]): NamedLogprob[] {
    const from = this.#waiting.length
    this.#waiting.push(...tokens.map((token) => this.#names.logprob(token)))
    const last = tokens.findLastIndex(({ text }) => text !== '')
    return last === -1 ? [] : this.#waiting.splice(0, from + last + 1)
  }

  /** Those that are left at the end. */
  end({ finishReason }: Completion): NamedLogprob[] {
    return finishReason === 'length' ? this.#waiting.splice(0) : []
  }
}
