// The playground: its page, and what the page needs besides OpenAI's API: states to go on from, tokens with ids.
import { randomUUID } from 'node:crypto'
import { serveStatic } from '@hono/node-server/serve-static'
import { Hono, type Context } from 'hono'
import { z } from 'zod'
import type { GeneratedToken, TokenLogprob } from '../generate.js'
import type { Session } from '../session.js'
import { toPath } from '../source.js'
import { readBody } from './body.js'
import type { Env, Exchange, ServedModel, ServerContext } from './context.js'
import {
  Choices,
  checkMaxTokens,
  pace,
  checkPromptTokens,
  generateOptions,
  type TokenNames,
} from './generation.js'
import { sampling } from './schemas.js'
import { event, eventStream } from './sse.js'

/** The page: the files of a folder, none of which may load anything from elsewhere. */
export function playgroundPage(folder: string | URL): Hono<Env> {
  const app = new Hono<Env>()
  app.use(async (c, next) => {
    await next()
    c.header('Content-Security-Policy', "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'")
    c.header('X-Content-Type-Options', 'nosniff')
    c.header('Referrer-Policy', 'no-referrer')
  })
  app.use(serveStatic({ root: toPath(folder) }))
  return app
}

const { model, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop } = sampling

const generateRequest = z.strictObject({
  ...{ model, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop },
  prompt: z.string(),
  /** The state after the prompt, as an earlier answer named it. It saves computing; where it is gone, nothing else changes. */
  state: z.string().max(64).optional(),
  /** What has been generated and is kept: the answer goes on after these. */
  tokens: z
    .array(
      z
        .int()
        .min(0)
        .max(2 ** 32 - 1),
    )
    .optional(),
  max_tokens: z.int().min(1),
})

/** Likeliest tokens that are given with each one. */
const alternatives = 8

/** Answers the playground's page. */
export class Playground {
  readonly #context: ServerContext
  readonly #states = new States()

  constructor(context: ServerContext) {
    this.#context = context
  }

  /** GET /playground/api/models: what there is to choose from. */
  models(c: Context<Env>): Response {
    const models = [...this.#context.models.values()].map(({ name, model }) => ({
      name,
      device: model.device,
      dtype: model.dtype,
      parameters: model.parameters,
      dimensions: model.config.d_model,
    }))
    return c.json({ models, maxTokens: this.#context.limits.completionTokens })
  }

  /**
   * POST /playground/api/generate: events `start` (the state after the prompt, what was computed), `token` and `end`,
   * each with the size of the session.
   */
  async generate(c: Context<Env>): Promise<Response> {
    const { limits } = this.#context
    const exchange = this.#context.begin(c)
    return exchange.answer(async () => {
      const body = await readBody(c, generateRequest, limits.bodyBytes)
      const served = this.#context.model(body.model)
      const kept = Uint32Array.from(body.tokens ?? [])
      checkMaxTokens(body.max_tokens, limits, 'max_tokens')
      await checkPromptTokens(served.model, [body.prompt, kept], limits.promptTokens, 'prompt')

      const caller = c.get('caller')
      const known = this.#states.find(body.state, { caller, model: served.name, prompt: body.prompt })
      const state = known ?? (await this.#afterPrompt(served, caller, body.prompt, exchange))
      // A copy of the state: the prompt is never read again, whatever is tried after it.
      const session = state.session.fork()
      if (kept.length > 0) await session.append(kept, exchange.queued)

      const start = {
        type: 'start',
        state: state.id,
        computed: (known ? 0 : state.session.tokens) + kept.length,
        context: session.tokens,
        bytes: session.byteLength,
      }
      const options = { ...generateOptions(body, 0, exchange.queued), logprobs: alternatives }
      const choices = new Choices([session.generate({ ...options, maxTokens: body.max_tokens })], () =>
        pace(this.#context.active),
      )
      let first = true
      const respond = eventStream(c, this.#context, exchange, async () => {
        const happened = await choices.next()
        if (happened.length === 0) return undefined
        const head = first ? event(start) : ''
        first = false
        const lines = happened.map((one) => {
          if ('tokens' in one)
            return one.tokens.map((token) => event(tokenEvent(token, served.names))).join('')
          const { finishReason, usage } = one.completion
          this.#context.metrics.tokens(served.name, {
            prompt: start.computed,
            completion: usage.completionTokens,
          })
          const { tokens: context, byteLength: bytes } = session
          return event({ type: 'end', finishReason, decodeSeconds: usage.decodeSeconds, context, bytes })
        })
        return head + lines.join('')
      })
      await choices.started() // an error before the first token is an answer of its own
      return respond()
    })
  }

  async #afterPrompt(
    served: ServedModel,
    caller: string,
    prompt: string,
    exchange: Exchange,
  ): Promise<State> {
    const session = served.model.session()
    if (prompt !== '') await session.append(prompt, exchange.queued)
    return this.#states.add({ caller, model: served.name, prompt, session })
  }
}

function tokenEvent({ token, text, logprob, top = [] }: GeneratedToken, names: TokenNames): object {
  const named = ({ token, logprob }: TokenLogprob) => ({ id: token, text: names.name(token).token, logprob })
  return { type: 'token', id: token, text, logprob, top: top.map(named) }
}

/** Whose state after which prompt. */
interface Origin {
  caller: string
  model: string
  prompt: string
}

interface State extends Origin {
  id: string
  session: Session
}

/** Bytes of all states that are kept; the one that was not used for longest goes first. */
const maxBytes = 256 * 2 ** 20

/** The states after the latest prompts. */
class States {
  readonly #states = new Map<string, State>()

  find(id: string | undefined, { caller, model, prompt }: Origin): State | undefined {
    const state = id === undefined ? undefined : this.#states.get(id)
    if (!state || state.caller !== caller || state.model !== model || state.prompt !== prompt)
      return undefined
    this.#states.delete(state.id)
    this.#states.set(state.id, state)
    return state
  }

  add(origin: Origin & { session: Session }): State {
    const state = { ...origin, id: randomUUID() }
    this.#states.set(state.id, state)
    let bytes = 0
    for (const { session, prompt } of this.#states.values()) bytes += session.byteLength + 2 * prompt.length
    for (const [id, { session, prompt }] of this.#states) {
      if (bytes <= maxBytes || id === state.id) break
      bytes -= session.byteLength + 2 * prompt.length
      this.#states.delete(id)
    }
    return state
  }
}
