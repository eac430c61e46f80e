import { needPeers } from '../peers.js'
import type { MambaApp } from './app.js'
import type { AppOptions } from './options.js'
import type { RunningServer, ServeOptions } from './serve.js'

export type { MambaApp } from './app.js'
export type { AppOptions, Limits } from './options.js'
export type { RunningServer, ServeOptions } from './serve.js'
export { DiskSessions, MemorySessions, RedisSessions, type SessionStore } from './session-store.js'

const packages = ['hono', '@hono/node-server', 'zod', 'prom-client']

/**
 * OpenAI's API on Mamba models, as a Hono app to serve or to mount in another. Needs the packages hono,
 * \@hono/node-server, zod and prom-client, and for chat \@huggingface/jinja.
 *
 * @throws {@link MambaError} `PEER_MISSING`, `OPTION_INVALID`, `INVALID_ARGUMENT`, `CHAT_TEMPLATE_INVALID`
 *
 * @example
 * import { Hono } from 'hono'
 * import { Mamba } from 'node-mamba'
 * import { createApp } from 'node-mamba/server'
 *
 * const { app } = await createApp({ models: await Mamba.load() })
 * const yours = new Hono().route('/ai', app)
 */
export async function createApp(options: AppOptions): Promise<MambaApp> {
  needPeers('the server', packages)
  return (await import('./app.js')).buildApp(options)
}

/**
 * Serves that app over HTTP, on this machine only unless `host` says otherwise.
 *
 * @throws {@link MambaError} as {@link createApp}, and `IO_ERROR` where it cannot listen
 */
export async function serve(options: ServeOptions): Promise<RunningServer> {
  needPeers('the server', packages)
  return (await import('./serve.js')).startServer(options)
}
