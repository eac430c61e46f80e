import type { Context } from 'hono'
import type { Queued } from '../call.js'
import { MambaError } from '../errors.js'
import type { Completion, GeneratedToken } from '../generate.js'
import type { TextOrIds } from '../input.js'
import { answer, type Job, type Writer } from './answers.js'
import { readBody } from './body.js'
import type { Env, Exchange, ServedModel, ServerContext } from './context.js'
import { ApiError } from './errors.js'
import {
  checkChoices,
  checkMaxTokens,
  checkPromptTokens,
  generateOptions,
  LogprobQueue,
  textOf,
  type TokenNames,
  type NamedLogprob,
} from './generation.js'
import { completionRequest, type CompletionRequest } from './schemas.js'

/** Log-probabilities as /v1/completions gives them. */
interface Logprobs {
  tokens: string[]
  token_logprobs: (number | null)[]
  top_logprobs: (Record<string, number> | null)[]
  text_offset: number[]
}

/** A prompt that is given back, and what its tokens' log-probabilities are. */
interface Echo {
  text: string
  /** The first token has none: nothing comes before it. */
  logprobs: (NamedLogprob | { token: string; logprob: null })[]
}

/** POST /v1/completions */
export async function completions(c: Context<Env>, context: ServerContext): Promise<Response> {
  const exchange = context.begin(c)
  return exchange.answer(async () => {
    const body = await readBody(c, completionRequest, context.limits.bodyBytes)
    const served = context.model(body.model)
    const prompts = toPrompts(body.prompt)
    const n = body.n ?? 1
    checkMaxTokens(body.max_tokens, context.limits, 'max_tokens')
    checkChoices(prompts.length, n, context.limits)
    if (body.max_tokens === 0 && (!body.echo || body.stream)) {
      const message = 'max_tokens is 0, expected 1 or more, unless with echo and without stream'
      throw new ApiError(400, 'invalid_value', message, { param: 'max_tokens' })
    }
    await checkPromptTokens(served.model, prompts, context.limits.promptTokens, 'prompt')

    const { names } = served
    const echoes = body.echo
      ? await Promise.all(prompts.map((prompt) => echo(served, prompt, body, names, exchange.queued)))
      : []
    const indices = Array.from({ length: prompts.length * n }, (_, index) => index)
    return answer(c, context, exchange, {
      served,
      body,
      prefix: 'cmpl',
      object: { whole: 'text_completion', chunk: 'text_completion' },
      writers: indices.map(
        (index) => new CompletionWriter(index, body, names, echoes[Math.floor(index / n)]),
      ),
      needsTokens: body.logprobs != null && body.max_tokens !== 0,
      ...(await generations(c, context, exchange, served, body, prompts)),
    })
  })
}

/** How the answers are started: from the prompts alone, or in a session. */
async function generations(
  c: Context<Env>,
  context: ServerContext,
  exchange: Exchange,
  { name, model }: ServedModel,
  body: CompletionRequest,
  prompts: TextOrIds[],
): Promise<Pick<Job, 'stream' | 'complete' | 'prompt' | 'done'>> {
  const n = body.n ?? 1
  const options = (index: number) => ({
    ...generateOptions(body, index % n, exchange.queued),
    maxTokens: body.max_tokens ?? 16,
    logprobs: body.logprobs ?? 0,
  })
  if (body.session == null) {
    const prompt = (index: number) => prompts[Math.floor(index / n)]!
    return {
      stream: (index) => model.generate(prompt(index), options(index)),
      complete: (index) =>
        body.max_tokens === 0 ? nothing(model, prompt(index)) : model.complete(prompt(index), options(index)),
    }
  }
  if (prompts.length * n > 1 || body.echo) {
    const message = 'a session goes on in one way, expected one prompt, n 1 and no echo'
    throw new ApiError(400, 'invalid_value', message, { param: 'session' })
  }
  const conversation = context.sessions.open(exchange, c.get('caller'), body.session)
  const session = (await conversation.latest({ name, model })) ?? model.session()
  const cached = session.tokens
  if (prompts[0]!.length > 0) await session.append(prompts[0]!, exchange.queued)
  return {
    stream: (index) => session.generate(options(index)),
    complete: (index) => session.generate(options(index)).result,
    prompt: { tokens: session.tokens, cached },
    done: () => conversation.save({ name, model }, [{ session }]),
  }
}

/** What no tokens at all come to; the prompt's log-probabilities are all that was asked for. */
async function nothing(model: ServedModel['model'], prompt: TextOrIds): Promise<Completion> {
  const ids = typeof prompt === 'string' ? model.tokenizer.encode(prompt) : prompt
  const outside = ids.find((id) => id >= model.vocabSize)
  if (outside !== undefined) {
    const message = `token id ${outside} of the prompt is not in the vocabulary, expected one below ${model.vocabSize}`
    throw new MambaError('TOKEN_OUT_OF_RANGE', message)
  }
  const promptTokens = ids.length
  const usage = { promptTokens, cachedTokens: 0, completionTokens: 0, prefillSeconds: 0, decodeSeconds: 0 }
  return { text: '', tokens: new Uint32Array(), logprobs: new Float32Array(), finishReason: 'length', usage }
}

/** OpenAI's four forms: an array of numbers is the ids of one prompt. */
export function toPrompts(input: string | string[] | number[] | number[][]): TextOrIds[] {
  if (typeof input === 'string') return [input]
  return typeof input[0] === 'number' ? [input as number[]] : (input as (string | number[])[])
}

async function echo(
  { model }: ServedModel,
  prompt: TextOrIds,
  body: CompletionRequest,
  names: TokenNames,
  queued: Queued,
): Promise<Echo> {
  const text =
    typeof prompt === 'string' ? prompt : model.tokenizer.decode(prompt, { skipSpecialTokens: false })
  if (body.logprobs == null) return { text, logprobs: [] }
  const ids = typeof prompt === 'string' ? model.tokenizer.encode(prompt) : prompt
  const first = ids.length > 0 ? [{ ...names.name(ids[0]!), logprob: null }] : []
  if (ids.length < 2) return { text, logprobs: first }
  const { logprobs } = await model.score(ids, queued)
  const others = Array.from(logprobs, (logprob, i) => names.logprob({ token: ids[i + 1]!, logprob }))
  return { text, logprobs: [...first, ...others] }
}

class CompletionWriter implements Writer {
  readonly #index: number
  readonly #withLogprobs: boolean
  readonly #echo: Echo | undefined
  readonly #queue: LogprobQueue
  readonly #all: Logprobs
  #offset = 0

  constructor(index: number, body: CompletionRequest, names: TokenNames, echo: Echo | undefined) {
    this.#index = index
    this.#withLogprobs = body.logprobs != null
    this.#echo = echo
    this.#queue = new LogprobQueue(names)
    this.#all = this.#lines(echo?.logprobs ?? [])
  }

  head(): object[] {
    return this.#echo ? [this.#choice(this.#echo.text, this.#all, null)] : []
  }

  tokens(tokens: readonly GeneratedToken[]): object | undefined {
    const logprobs = this.#withLogprobs ? this.#more(this.#queue.add(tokens)) : null
    const text = textOf(tokens)
    return text === '' ? undefined : this.#choice(text, logprobs, null)
  }

  end(completion: Completion): object {
    return this.#choice(
      '',
      this.#withLogprobs ? this.#more(this.#queue.end(completion)) : null,
      completion.finishReason,
    )
  }

  whole(completion: Completion): object {
    if (this.#withLogprobs) this.#more(this.#queue.end(completion))
    return this.#choice((this.#echo?.text ?? '') + completion.text, this.#all, completion.finishReason)
  }

  #choice(text: string, logprobs: Logprobs | null, finish_reason: Completion['finishReason'] | null): object {
    return { index: this.#index, text, logprobs: this.#withLogprobs ? logprobs : null, finish_reason }
  }

  /** Adds to the whole, and gives what was added. */
  #more(logprobs: NamedLogprob[]): Logprobs {
    const lines = this.#lines(logprobs)
    this.#all.tokens.push(...lines.tokens)
    this.#all.token_logprobs.push(...lines.token_logprobs)
    this.#all.top_logprobs.push(...lines.top_logprobs)
    this.#all.text_offset.push(...lines.text_offset)
    return lines
  }

  #lines(logprobs: Echo['logprobs']): Logprobs {
    const lines: Logprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] }
    for (const item of logprobs) {
      lines.tokens.push(item.token)
      lines.token_logprobs.push(item.logprob)
      lines.text_offset.push(this.#offset)
      this.#offset += 'bytes' in item && item.bytes === null ? 0 : item.token.length
      if (item.logprob === null) lines.top_logprobs.push(null)
      else {
        // The token itself is there even where it is not among the likeliest.
        const top = item.top.map((other) => [other.token, other.logprob] as const)
        lines.top_logprobs.push(Object.fromEntries([...top, [item.token, item.logprob]]))
      }
    }
    return lines
  }
}
