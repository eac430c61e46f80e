// Server-sent events, written as fast as the client reads.
import type { ServerResponse } from 'node:http'
import type { Context } from 'hono'
import { bindings, type Env, type Exchange, type ServerContext } from './context.js'
import { toApiError } from './errors.js'

/** One event as text. */
export const event = (data: unknown) => `data: ${JSON.stringify(data)}\n\n`

const headers = {
  'Content-Type': 'text/event-stream; charset=utf-8',
  'Cache-Control': 'no-cache, no-transform',
  'X-Accel-Buffering': 'no', // nginx would collect them
  'Transfer-Encoding': 'chunked', // @hono/node-server would wait for a second one
}

/** Where events are written to. */
interface Sink {
  /** False: no more until it calls `ready`. */
  write(text: string): boolean
  ready: () => void
  end(): void
  /** Disconnects a client that does not read. */
  cut(): void
}

/** Writes events to a sink, to their end. */
export type Send = (sink: Sink) => Promise<void>

/**
 * Prepares an answer of server-sent events; what is returned gives it: `next` gives the next ones as text, or nothing at the end. They are only asked for
 * as fast as the client reads; one that reads nothing for `limits.stallSeconds` is disconnected. An error that comes
 * after the first event is an event of its own. When the exchange is aborted, what there is to say is said whether the
 * client reads or not. The exchange ends with the stream.
 */
export function eventStream(
  c: Context<Env>,
  { limits, metrics }: ServerContext,
  exchange: Exchange,
  next: () => Promise<string | undefined>,
): () => Response {
  const signal = exchange.queued.signal!
  const send: Send = async (sink) => {
    const stalled = () => {
      metrics.stalled()
      exchange.clientLeft()
      sink.cut() // it is full, so there is nobody to tell
    }
    const ready = () =>
      new Promise<void>((resolve) => {
        const timer = setTimeout(stalled, limits.stallSeconds * 1000)
        sink.ready = () => {
          clearTimeout(timer)
          signal.removeEventListener('abort', sink.ready)
          resolve()
        }
        signal.addEventListener('abort', sink.ready)
      })
    try {
      for (let text = await next(); text !== undefined; text = await next()) {
        if (!sink.write(text) && !signal.aborted) await ready()
      }
    } catch (error) {
      const reason = toApiError(error)
      exchange.abort(reason) // what else the request started is of no use now
      sink.write(event(reason.body))
    }
    sink.end()
    exchange.end()
  }
  const { outgoing, direct } = bindings(c)
  if (!direct) return () => c.body(toStream(exchange, send, outgoing), 200, headers)
  const response = c.body(null, 200, headers)
  return () => {
    direct.send = send
    return response
  }
}

/** Writes straight to Node's response, which costs much less than a web stream. */
export function toNode(outgoing: ServerResponse): Sink {
  const sink: Sink = {
    write: (text) => outgoing.write(text),
    ready: () => {},
    end: () => outgoing.end(),
    cut: () => outgoing.destroy(),
  }
  outgoing.on('drain', () => sink.ready())
  return sink
}

/** A stream for whatever server the app is mounted in. */
function toStream(exchange: Exchange, send: Send, outgoing?: ServerResponse): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  let [wanted, open] = [false, true]
  let sink: Sink
  return new ReadableStream(
    {
      start(controller) {
        sink = {
          write(text) {
            wanted = false
            if (open) controller.enqueue(encoder.encode(text)) // it may ask for more
            return wanted
          },
          ready: () => {},
          end: () => open && controller.close(),
          cut: () => outgoing?.destroy(),
        }
        void send(sink)
      },
      pull() {
        wanted = true
        sink.ready()
      },
      cancel() {
        open = false
        exchange.clientLeft()
      },
    },
    { highWaterMark: 0 },
  )
}
