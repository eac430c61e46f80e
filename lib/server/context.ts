import { setMaxListeners } from 'node:events'
import type { ServerResponse } from 'node:http'
import type { Context } from 'hono'
import type { Queued } from '../call.js'
import type { ChatTemplate } from '../chat-template.js'
import type { Mamba } from '../model.js'
import { ApiError, toApiError } from './errors.js'
import type { TokenNames } from './generation.js'
import type { Metrics } from './metrics.js'
import type { Limits } from './options.js'
import type { Sessions } from './sessions.js'
import type { Send } from './sse.js'

/** A model under the name that requests use. */
export interface ServedModel {
  name: string
  model: Mamba
  chatTemplate: ChatTemplate | undefined
  /** Of its tokens. */
  names: TokenNames
  /** Seconds since 1970 when it came to be served. */
  created: number
}

/** What Hono carries along with a request. */
export type Env = {
  Bindings: {
    /** Node's response, under @hono/node-server. */
    outgoing?: ServerResponse
    /** Where our own server writes streams itself: how to. */
    direct?: { send?: Send }
  }
  Variables: { caller: string; exchange: Exchange | undefined }
}

/** What the server says of a request; nothing, where the app is called as a function. */
export function bindings(c: Context<Env>): Env['Bindings'] {
  return (c.env as Env['Bindings'] | undefined) ?? {}
}

/** What all routes share. */
export class ServerContext {
  readonly #exchanges = new Set<Exchange>()
  /** Whether no new work is taken. */
  draining = false
  /** Whether a GPU went away; what needs it fails from then on. */
  deviceLost = false

  constructor(
    readonly models: ReadonlyMap<string, ServedModel>,
    readonly limits: Limits,
    readonly sessions: Sessions,
    readonly metrics: Metrics,
  ) {}

  /** @throws {@link ApiError} 404 */
  model(name: string): ServedModel {
    const found = this.models.get(name)
    if (found) return found
    const known = [...this.models.keys()].map((known) => `'${known}'`).join(', ')
    const shown = name.length > 80 ? `${name.slice(0, 80)}…` : name
    throw new ApiError(404, 'model_not_found', `there is no model '${shown}', expected one of ${known}`, {
      param: 'model',
    })
  }

  /** Opens the work on a request; whoever answers it ends it. */
  begin(c: Context<Env>): Exchange {
    if (this.draining) {
      throw new ApiError(503, 'shutting_down', 'the server is shutting down', {
        headers: { 'Retry-After': '5', Connection: 'close' },
      })
    }
    const exchange = new Exchange(c, this.limits.requestSeconds, (ended) => this.#exchanges.delete(ended))
    this.#exchanges.add(exchange)
    c.set('exchange', exchange)
    return exchange
  }

  /** Requests that are being worked on. */
  get active(): number {
    return this.#exchanges.size
  }

  /** Takes no new work, waits for what there is, and ends what is left after `seconds`. */
  async drain(seconds: number): Promise<void> {
    this.draining = true
    const stop = () => {
      for (const exchange of this.#exchanges) {
        exchange.abort(
          new ApiError(503, 'shutting_down', 'the server shut down before the answer was complete'),
        )
      }
    }
    const timer = setTimeout(stop, seconds * 1000)
    await Promise.all([...this.#exchanges].map((exchange) => exchange.ended))
    clearTimeout(timer)
  }
}

/** Calls `left` when the client closes its connection; what is returned ends that. */
function watchClient(c: Context<Env>, left: () => void): () => void {
  const { outgoing } = bindings(c)
  if (outgoing) {
    // The request's signal says the same, but costs much more.
    if (outgoing.destroyed) left()
    outgoing.once('close', left)
    return () => outgoing.off('close', left)
  }
  const { signal } = c.req.raw
  if (signal.aborted) left()
  signal.addEventListener('abort', left, { once: true })
  return () => signal.removeEventListener('abort', left)
}

/** The work on one request: what ends it early, and that it has ended. */
export class Exchange {
  readonly #controller = new AbortController()
  readonly #timer: NodeJS.Timeout
  readonly #left = () => this.clientLeft()
  readonly #unwatch: () => void
  #end!: () => void
  /** Resolves when it has ended. */
  readonly ended: Promise<void>

  constructor(c: Context<Env>, seconds: number, onEnd: (exchange: Exchange) => void) {
    setMaxListeners(0, this.#controller.signal) // one for each answer of n is no leak
    const user = c.get('caller')
    this.queued = { signal: this.#controller.signal, ...(user && { user }) }
    this.#timer = setTimeout(
      () => this.abort(new ApiError(504, 'timeout', `the answer was not complete after ${seconds} s`)),
      seconds * 1000,
    )
    this.#unwatch = watchClient(c, this.#left)
    this.ended = new Promise((resolve) => {
      this.#end = () => {
        onEnd(this)
        resolve()
      }
    })
  }

  /**
   * Goes with all that the request starts: a signal that ends it, whose reason is an ApiError; and the caller, so that
   * those with keys of their own are served in turn, however much each asks for.
   */
  readonly queued: Queued

  abort(reason: ApiError): void {
    if (!this.#controller.signal.aborted) this.#controller.abort(reason)
  }

  /** Nobody waits for the answer any more. */
  clientLeft(): void {
    this.abort(
      new ApiError(400, 'client_left', 'the client closed the connection before the answer was complete'),
    )
  }

  end(): void {
    clearTimeout(this.#timer)
    this.#unwatch()
    this.#end()
  }

  /** Runs `work` to its answer, and ends with it, unless the answer is a stream: that ends by itself. */
  async answer(work: () => Promise<Response>): Promise<Response> {
    let streams = false
    try {
      const response = await work()
      streams = response.headers.get('content-type')?.startsWith('text/event-stream') ?? false
      return response
    } catch (error) {
      this.abort(toApiError(error)) // what else the request started is of no use now
      throw error
    } finally {
      if (!streams) this.end()
    }
  }
}
