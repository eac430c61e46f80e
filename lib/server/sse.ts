import type { Context } from 'hono'
import type { ServerResponse } from 'node:http'
import type { Exchange, ServerContext } from './context.js'
import { toApiError } from './errors.js'

/** One event as text. */
export const event = (data: unknown) => `data: ${JSON.stringify(data)}\n\n`

const encoder = new TextEncoder()

/**
 * Answers with server-sent events: `next` gives the next ones as text, or nothing at the end. They are only asked for
 * as fast as the client reads; one that reads nothing for `limits.stallSeconds` is disconnected. An error that comes after
 * the first event is an event of its own. `exchange` ends with the stream.
 */
export function eventStream(
  c: Context,
  { limits, metrics }: ServerContext,
  exchange: Exchange,
  next: () => Promise<string | undefined>,
): Response {
  let stall: NodeJS.Timeout | undefined
  const end = () => {
    clearTimeout(stall)
    exchange.end()
  }
  const disconnect = () => {
    metrics.stalled()
    exchange.clientLeft()
    // The socket is full, so there is nobody to tell; closing it cancels the stream.
    const { outgoing } = (c.env ?? {}) as { outgoing?: ServerResponse }
    outgoing?.destroy()
  }
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        clearTimeout(stall)
        let text
        try {
          text = await next()
        } catch (error) {
          const reason = toApiError(error)
          exchange.abort(reason) // what else the request started is of no use now
          controller.enqueue(encoder.encode(event(reason.body)))
        }
        if (text === undefined) {
          controller.close()
          return end()
        }
        controller.enqueue(encoder.encode(text))
        stall = setTimeout(disconnect, limits.stallSeconds * 1000)
      },
      cancel() {
        exchange.clientLeft()
        end()
      },
    },
    { highWaterMark: 0 },
  )
  return new Response(body, {
    headers: {
      'Content-Type': 'text/event-stream; charset=utf-8',
      'Cache-Control': 'no-cache, no-transform',
      'X-Accel-Buffering': 'no', // nginx would collect them
      'Transfer-Encoding': 'chunked', // @hono/node-server would wait for a second one
    },
  })
}
