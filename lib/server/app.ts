import { randomUUID } from 'node:crypto'
import { Hono, type Context, type Handler, type MiddlewareHandler } from 'hono'
import { cors } from 'hono/cors'
import { HTTPException } from 'hono/http-exception'
import { routePath } from 'hono/route'
import { Options } from '../options.js'
import { authenticate, KeyCheck } from './auth.js'
import { chat } from './chat.js'
import { completions } from './completions.js'
import { ServerContext, type Env, type ServedModel } from './context.js'
import { embeddings } from './embeddings.js'
import { ApiError, toApiError } from './errors.js'
import { Metrics } from './metrics.js'
import { TokenNames } from './generation.js'
import { listModels, showModel } from './models.js'
import { openApiDocument } from './openapi.js'
import {
  appOptionNames,
  readChatTemplates,
  readDrainSeconds,
  readLimits,
  readModels,
  readSessions,
  readStrings,
  type AppOptions,
} from './options.js'
import { Playground, playgroundPage } from './playground.js'
import { sessionId } from './schemas.js'
import { MemorySessions } from './session-store.js'
import { Sessions } from './sessions.js'

/** The API as a Hono app, and what goes with it. */
export interface MambaApp {
  /** To serve, or to mount: `yours.route('/ai', app)`. */
  app: Hono<Env>
  /** Takes no new requests, lets those under way end (at most so many seconds), and forgets what is in memory. */
  close(drainSeconds?: number): Promise<void>
}

/** Behind `createApp`, once the packages that it needs are known to be there. */
export async function buildApp(options: AppOptions): Promise<MambaApp> {
  const read = new Options(options, appOptionNames)
  const limits = readLimits(options.limits)
  const keys = readStrings('apiKeys', options.apiKeys)
  const origins = readStrings('corsOrigins', options.corsOrigins)
  const hosts = readStrings('hosts', options.hosts)
  const check = keys && new KeyCheck(keys)
  const sessions = new Sessions(readSessions(read.any('sessions')) ?? new MemorySessions())
  const models = new Map<string, ServedModel>()
  const given = readModels(options.models)
  const templates = readChatTemplates(options, given)
  for (const [name, model] of given) {
    const chatTemplate = templates[name] ?? (await model.chatTemplate())
    const created = Math.floor(Date.now() / 1000)
    models.set(name, { name, model, chatTemplate, names: new TokenNames(model), created })
  }
  const metrics: Metrics = new Metrics(() => context.active)
  const context = new ServerContext(models, limits, sessions, metrics)

  const app = new Hono<Env>()
  app.onError((error, c) => {
    const answered =
      error instanceof HTTPException ? new ApiError(400, 'bad_request', error.message) : toApiError(error)
    if (answered.code === 'device_lost') context.deviceLost = true
    if (answered.code === 'internal_error') console.error(error)
    return answered.toResponse(c)
  })
  app.use(async (c, next) => {
    const start = performance.now()
    await next()
    c.res.headers.set('X-Request-Id', randomUUID()) // c.header would copy the response
    const done = () => metrics.request(routePath(c, -1), c.res.status, (performance.now() - start) / 1000)
    const exchange = c.get('exchange')
    if (exchange) void exchange.ended.then(done)
    else done()
  })
  if (hosts) app.use(only(hosts))
  if (origins) {
    app.use(
      cors({
        origin: origins.includes('*') ? '*' : [...origins],
        exposeHeaders: ['X-Request-Id', 'Retry-After'],
      }),
    )
  }

  const methods = new Map<string, string[]>()
  /** A route, and the refusal of what it does not do. */
  const route = (method: 'get' | 'post' | 'delete', path: string, handler: Handler<Env>) => {
    methods.set(path, [
      ...(methods.get(path) ?? []),
      ...(method === 'get' ? ['GET', 'HEAD'] : [method.toUpperCase()]),
    ])
    app[method](path, handler)
  }
  const open = (path: string, handler: Handler<Env>) => route('get', path, handler)
  const guarded = (method: 'get' | 'post' | 'delete', path: string, handler: Handler<Env>) =>
    route(method, path, (c, next) => {
      c.set('caller', authenticate(c, check))
      return handler(c, next)
    })

  open('/health', (c) => c.json({ status: 'ok' }))
  open('/ready', (c) => {
    if (context.draining) return c.json({ status: 'draining' }, 503)
    return context.deviceLost ? c.json({ status: 'device_lost' }, 503) : c.json({ status: 'ready' })
  })
  open('/openapi.json', (c) => c.json(openApiDocument(context, check !== undefined)))
  guarded('get', '/metrics', async (c) =>
    c.text(await metrics.text(), 200, { 'Content-Type': metrics.contentType }),
  )
  guarded('get', '/v1/models', (c) => listModels(c, context))
  guarded('get', '/v1/models/:model{.+}', (c) => showModel(c, context))
  guarded('post', '/v1/completions', (c) => completions(c, context))
  guarded('post', '/v1/chat/completions', (c) => chat(c, context))
  guarded('post', '/v1/embeddings', (c) => embeddings(c, context))
  guarded('delete', '/v1/sessions/:session', (c) => deleteSession(c, context))
  if (options.playground !== undefined) {
    const playground = new Playground(context)
    guarded('get', '/playground/api/models', (c) => playground.models(c))
    guarded('post', '/playground/api/generate', (c) => playground.generate(c))
  }
  for (const [path, allowed] of methods) app.all(path, () => refuseMethod(path, allowed))
  if (options.playground !== undefined) app.route('/', playgroundPage(options.playground))
  app.notFound((c) => {
    const message = `there is nothing at ${c.req.method} ${c.req.path.slice(0, 200)}`
    return new ApiError(404, 'unknown_url', message).toResponse(c)
  })

  let closed: Promise<void> | undefined
  const close = async (seconds: number) => {
    await context.drain(seconds)
    await sessions.close()
    await Promise.all(Object.values(templates).map((template) => template.close()))
  }
  return {
    app,
    close: async (drainSeconds) => {
      const seconds = readDrainSeconds(drainSeconds)
      await (closed ??= close(seconds))
    },
  }
}

/** Lets in the requests whose `Host` is one of these: a page of another name that has this address is none. */
function only(hosts: readonly string[]): MiddlewareHandler<Env> {
  const known = new Set(hosts.map((host) => host.toLowerCase()))
  return async (c, next) => {
    const host = (c.req.header('host') ?? '').replace(/:\d+$/, '')
    if (!known.has(host.toLowerCase())) {
      const message = `the host '${host}' is not served here, expected ${hosts.join(', ')}`
      throw new ApiError(403, 'host_not_allowed', message)
    }
    await next()
  }
}

function refuseMethod(path: string, allowed: string[]): never {
  const message = `this method is not for ${path}, expected ${allowed.join(' or ')}`
  throw new ApiError(405, 'method_not_allowed', message, { headers: { Allow: allowed.join(', ') } })
}

async function deleteSession(c: Context<Env>, context: ServerContext): Promise<Response> {
  const id = c.req.param('session')!
  if (!sessionId.safeParse(id).success) {
    const message = "the session's name is not valid, expected 1 to 128 letters, digits, '_', '-'"
    throw new ApiError(400, 'invalid_value', message, { param: 'session' })
  }
  if (!(await context.sessions.delete(c.get('caller'), id))) {
    throw new ApiError(404, 'session_not_found', `there is no session '${id}'`, { param: 'session' })
  }
  return c.json({ id, object: 'session.deleted', deleted: true })
}
