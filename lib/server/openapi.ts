import { z } from 'zod'
import { version } from '../diagnose.js'
import type { ServerContext } from './context.js'
import type { Limits } from './options.js'
import * as schemas from './schemas.js'

const { components } = schemas

interface Operation {
  summary: string
  request?: z.ZodType
  response: z.ZodType | string
  /** Statuses besides 200 and those that every operation of its kind has. */
  errors?: number[]
  parameter?: { name: string; description: string; pattern?: string }
  open?: boolean
  streams?: boolean
}

/** What each status means here; the codes are in docs/server.md. */
const descriptions: Record<number, string> = {
  400: 'The request is not valid.',
  401: 'No valid API key.',
  403: 'Not served under this host name.',
  404: 'There is no such thing.',
  405: 'Another method is expected.',
  409: 'The session is in use, or of another model.',
  413: 'The body is too large.',
  415: 'The body is not JSON.',
  429: 'The queue is full.',
  500: 'The server failed.',
  503: 'Shutting down, out of memory, or the device is lost.',
  504: 'The answer took too long.',
}

const posts = [400, 404, 409, 413, 415, 429, 500, 503, 504]

const operations: Record<string, Record<string, Operation>> = {
  '/v1/completions': {
    post: {
      summary: 'Continue prompts',
      request: schemas.completionRequest,
      response: schemas.completionResponse,
      errors: posts,
      streams: true,
    },
  },
  '/v1/chat/completions': {
    post: {
      summary: 'Answer a conversation',
      request: schemas.chatRequest,
      response: schemas.chatResponse,
      errors: posts,
      streams: true,
    },
  },
  '/v1/embeddings': {
    post: {
      summary: 'Turn texts into vectors',
      request: schemas.embeddingRequest,
      response: schemas.embeddingResponse,
      errors: posts,
    },
  },
  '/v1/models': { get: { summary: 'List the models', response: schemas.modelList } },
  '/v1/models/{model}': {
    get: {
      summary: 'Describe a model',
      response: schemas.modelObject,
      errors: [404],
      parameter: { name: 'model', description: "The model's name." },
    },
  },
  '/v1/sessions/{session}': {
    delete: {
      summary: 'Forget a session',
      response: schemas.sessionDeleted,
      errors: [400, 404, 409, 503],
      parameter: { name: 'session', description: "The session's name.", pattern: '^[A-Za-z0-9_-]{1,128}$' },
    },
  },
  '/health': { get: { summary: 'Whether the process answers', response: schemas.status, open: true } },
  '/ready': {
    get: { summary: 'Whether it takes requests', response: schemas.status, open: true, errors: [503] },
  },
  '/metrics': { get: { summary: 'Metrics for Prometheus', response: 'text/plain' } },
}

/** The OpenAPI 3.1 document of a server. */
export function openApiDocument(context: ServerContext, withKeys: boolean): object {
  const names = [...context.models.keys()]
  const paths: Record<string, Record<string, object>> = {}
  for (const [path, methods] of Object.entries(operations)) {
    paths[path] = {}
    for (const [method, operation] of Object.entries(methods)) {
      paths[path][method] = describe(operation, path === '/ready', withKeys, names)
    }
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'node-mamba',
      version: version(),
      description: `OpenAI's API on Mamba models: ${names.join(', ')}.`,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    paths,
    components: {
      schemas: componentSchemas(names, context.limits),
      ...(withKeys && { securitySchemes: { key: { type: 'http', scheme: 'bearer' } } }),
    },
  }
}

function describe(operation: Operation, isStatus: boolean, withKeys: boolean, models: string[]): object {
  const { summary, request, response, errors = [], parameter, open, streams } = operation
  const statuses = [...errors, 403, 405, ...(withKeys && !open ? [401] : [])].toSorted((a, b) => a - b)
  const guarded = withKeys && !open
  const content =
    typeof response === 'string'
      ? { [response]: { schema: { type: 'string' } } }
      : {
          'application/json': { schema: reference(response) },
          ...(streams && { 'text/event-stream': { schema: eventSchema } }),
        }
  return {
    summary,
    ...(guarded && { security: [{ key: [] }] }),
    ...(parameter && {
      parameters: [
        {
          name: parameter.name,
          in: 'path',
          required: true,
          description: parameter.description,
          schema: parameter.pattern ? { type: 'string', pattern: parameter.pattern } : { enum: models },
        },
      ],
    }),
    ...(request && {
      requestBody: { required: true, content: { 'application/json': { schema: reference(request) } } },
    }),
    responses: {
      200: { description: 'Done.', content },
      ...Object.fromEntries(
        statuses.map((status) => [
          status,
          {
            description: descriptions[status],
            content: {
              'application/json': {
                schema: reference(isStatus && status === 503 ? schemas.status : schemas.errorResponse),
              },
            },
          },
        ]),
      ),
    },
  }
}

/** One server-sent event. */
const eventSchema = {
  type: 'object',
  required: ['data'],
  properties: {
    data: {
      type: 'string',
      description: 'A part of the answer as JSON, an error as JSON, or at the end [DONE].',
    },
  },
}

const at = (id: string) => `#/components/schemas/${id}`
const reference = (schema: z.ZodType) => ({ $ref: at(components.get(schema)!.id) })

function componentSchemas(models: string[], limits: Limits): Record<string, object> {
  const { schemas: all } = z.toJSONSchema(components, {
    io: 'input',
    uri: at,
    override: ({ zodSchema, jsonSchema }) => {
      // What this server has and allows.
      if (zodSchema === schemas.modelName) jsonSchema.enum = models
      if (zodSchema === schemas.choices) jsonSchema.maximum = limits.choices
      if (zodSchema === schemas.tokens) jsonSchema.maximum = limits.completionTokens
    },
  })
  // They are parts of a document here, not documents of their own.
  for (const schema of Object.values(all)) {
    delete schema.$schema
    delete schema.$id
  }
  return all as Record<string, object>
}
