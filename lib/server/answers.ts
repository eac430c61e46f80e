// Runs the answers of a request and gives them whole or as a stream, whatever they look like.
import { randomUUID } from 'node:crypto'
import type { Context } from 'hono'
import type { Completion, GeneratedToken, Generation } from '../generate.js'
import type { Env, Exchange, ServedModel, ServerContext } from './context.js'
import { Choices, pace, type ChoiceEvent } from './generation.js'
import type { SamplingRequest } from './schemas.js'
import { event, eventStream } from './sse.js'

/** Writes one answer in the form of an endpoint. */
export interface Writer {
  /** What a stream says before the first token. */
  head(): object[]
  /** What a stream says of tokens that came together, or nothing while their text is not certain. */
  tokens(tokens: readonly GeneratedToken[]): object | undefined
  /** What a stream says at the end. */
  end(completion: Completion): object
  /** The whole answer. After `tokens` of all its tokens, if log-probabilities were asked for. */
  whole(completion: Completion): object
}

/** A request that has been read and checked. */
export interface Job {
  served: ServedModel
  body: SamplingRequest
  /** What ids begin with. */
  prefix: string
  /** Names of an answer and of a part of a stream. */
  object: { whole: string; chunk: string }
  writers: readonly Writer[]
  /** Whether the writers need each token. */
  needsTokens: boolean
  /** Starts an answer; its tokens are wanted one by one. */
  stream(index: number): Generation
  /** Starts an answer. */
  complete(index: number): Promise<Completion>
  /** Tokens of the prompt, where the answers do not say: those of a session, and of them those known before. */
  prompt?: { tokens: number; cached: number }
  /** Called when all answers are complete, before the last one is given. */
  done?: (completions: Completion[]) => Promise<void>
}

/** Runs a job. Errors before the first token reject, so that they get a status of their own. */
export async function answer(
  c: Context<Env>,
  context: ServerContext,
  exchange: Exchange,
  job: Job,
): Promise<Response> {
  const common = {
    id: `${job.prefix}-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: job.served.name,
  }
  if (job.body.stream) return stream(c, context, exchange, job, { ...common, object: job.object.chunk })
  const completions = await Promise.all(
    job.writers.map(async (writer, index) => {
      if (!job.needsTokens) return job.complete(index)
      const generation = job.stream(index)
      for await (const token of generation) writer.tokens([token])
      return generation.result
    }),
  )
  await job.done?.(completions)
  const choices = completions.map((completion, index) => job.writers[index]!.whole(completion))
  return c.json({ ...common, object: job.object.whole, choices, usage: count(context, job, completions) })
}

async function stream(
  c: Context<Env>,
  context: ServerContext,
  exchange: Exchange,
  job: Job,
  common: object,
): Promise<Response> {
  const start = performance.now()
  const choices = new Choices(
    job.writers.map((_, index) => job.stream(index)),
    () => pace(context.active),
  )
  // Prepared while the prompt is computed.
  const withUsage = job.body.stream_options?.include_usage ?? false
  const part = (choice: object) => event({ ...common, choices: [choice], ...(withUsage && { usage: null }) })
  const completions: Completion[] = []
  const say = (happened: ChoiceEvent) => {
    const writer = job.writers[happened.index]!
    if ('completion' in happened) {
      completions[happened.index] = happened.completion
      return part(writer.end(happened.completion))
    }
    const said = writer.tokens(happened.tokens)
    return said ? part(said) : ''
  }
  let text = job.writers.flatMap((writer) => writer.head().map(part)).join('')
  let ended = false
  const respond = eventStream(c, context, exchange, async () => {
    while (!ended) {
      const events = await choices.next()
      for (const happened of events) text += say(happened)
      if (events.length === 0) {
        ended = true
        await job.done?.(completions)
        const usage = count(context, job, completions)
        if (withUsage) text += event({ ...common, choices: [], usage })
        text += 'data: [DONE]\n\n'
      }
      if (text !== '') {
        const said = text
        text = ''
        return said
      }
    }
    return undefined
  })
  await choices.started()
  const seconds = (performance.now() - start) / 1000
  void exchange.ended.then(() => context.metrics.firstToken(job.served.name, seconds))
  return respond()
}

/** The usage of a request, in OpenAI's form; it goes into the metrics, too. */
function count(context: ServerContext, job: Job, completions: readonly Completion[]) {
  const n = job.body.n ?? 1
  let [tokens, cached, completion] = [0, 0, 0]
  completions.forEach(({ usage }, index) => {
    completion += usage.completionTokens
    // The answers to one prompt have it in common.
    if (index % n !== 0) return
    tokens += usage.promptTokens
    cached += usage.cachedTokens
  })
  if (job.prompt) ({ tokens, cached } = job.prompt)
  context.metrics.tokens(job.served.name, { prompt: tokens - cached, cached, completion })
  return {
    prompt_tokens: tokens,
    completion_tokens: completion,
    total_tokens: tokens + completion,
    prompt_tokens_details: { cached_tokens: cached },
  }
}
