import type { Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createAdaptorServer, type getRequestListener } from '@hono/node-server'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import { MambaError } from '../errors.js'
import { Options } from '../options.js'
import { buildApp } from './app.js'
import type { Env } from './context.js'
import { appOptionNames, loopbackHosts, readDrainSeconds, type AppOptions } from './options.js'
import { toNode } from './sse.js'

/** How the app is served. */
export interface ServeOptions extends AppOptions {
  /** Address to listen on. Default: 127.0.0.1, so that no other machine can call. */
  host?: string
  /** Port to listen on; 0 is any that is free. Default: 8000. */
  port?: number
  /** Seconds that requests under way get to end when the server is closed. Default: 30. */
  drainSeconds?: number
}

/** A server that listens. */
export interface RunningServer {
  /** Where it is: `http://127.0.0.1:8000`. */
  url: string
  port: number
  /** Takes no new connections, lets requests under way end (for at most `drainSeconds`), and ends. */
  close(): Promise<void>
}

type FetchCallback = Parameters<typeof getRequestListener>[0]

const loopback = ['127.0.0.1', '::1', 'localhost']

/** Behind `serve`, once the packages that it needs are known to be there. */
export async function startServer(options: ServeOptions): Promise<RunningServer> {
  const read = new Options(options, [...appOptionNames, 'host', 'port', 'drainSeconds'])
  const host = read.string('host') ?? '127.0.0.1'
  const port = read.integer('port', 0, 65_535) ?? 8000
  const drainSeconds = readDrainSeconds(read.number('drainSeconds'))
  const { host: _host, port: _port, drainSeconds: _drain, ...appOptions } = options
  if (loopback.includes(host)) appOptions.hosts ??= loopbackHosts
  const { app, close } = await buildApp(appOptions)
  const { requestSeconds = 300, stallSeconds = 30 } = options.limits ?? {}

  const fetch = async (request: Request, { outgoing }: { outgoing: ServerResponse }) => {
    const direct: Env['Bindings']['direct'] = {}
    const response = await app.fetch(request, { outgoing, direct })
    if (!direct.send) return response
    outgoing.writeHead(response.status, Object.fromEntries(response.headers))
    void direct.send(toNode(outgoing))
    return RESPONSE_ALREADY_SENT
  }
  const server = createAdaptorServer({
    fetch: fetch as FetchCallback, // over HTTP/1
    overrideGlobalObjects: false, // the process's own Request and Response stay as they are
    serverOptions: {
      requestTimeout: 60_000, // a body that never ends
      headersTimeout: 10_000,
      connectionsCheckingInterval: 5000,
      keepAliveTimeout: 10_000,
    },
  }) as Server
  // A client that takes nothing of a whole answer; streams have their own limit.
  server.setTimeout((requestSeconds + stallSeconds) * 1000)
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const message = `cannot listen on ${host} port ${port}: ${cause.message}`
      reject(new MambaError('IO_ERROR', message, { cause }))
    })
    server.listen(port, host, resolve)
  })
  const address = server.address() as AddressInfo
  const shown = host.includes(':') ? `[${host}]` : host

  let closed: Promise<void> | undefined
  const end = async () => {
    const ended = new Promise<void>((resolve) => server.close(() => resolve()))
    await close(drainSeconds)
    // What is still open has been answered, or never asked anything.
    const patience = setTimeout(() => server.closeAllConnections(), 1000)
    const sweep = setInterval(() => server.closeIdleConnections(), 20)
    await ended
    clearTimeout(patience)
    clearInterval(sweep)
  }
  return { url: `http://${shown}:${address.port}`, port: address.port, close: () => (closed ??= end()) }
}
