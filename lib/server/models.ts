import type { Context } from 'hono'
import type { Env, ServedModel, ServerContext } from './context.js'

const describe = ({ name, created }: ServedModel) => ({
  id: name,
  object: 'model',
  created,
  owned_by: 'node-mamba',
})

/** GET /v1/models */
export function listModels(c: Context<Env>, context: ServerContext): Response {
  return c.json({ object: 'list', data: [...context.models.values()].map(describe) })
}

/** GET /v1/models/:model */
export function showModel(c: Context<Env>, context: ServerContext): Response {
  return c.json(describe(context.model(c.req.param('model')!)))
}
