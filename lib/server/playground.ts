import { serveStatic } from '@hono/node-server/serve-static'
import { Hono } from 'hono'
import { toPath } from '../source.js'
import type { Env } from './context.js'

/** The playground's page: the files of a folder, none of which may load anything from elsewhere. */
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
