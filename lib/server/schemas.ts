// What requests and answers look like: requests are checked by these, and the OpenAPI document is made of them.
// A parameter of OpenAI's that cannot be honoured here is refused unless it has the value that changes nothing.
import { z } from 'zod'

/** What has a name in the OpenAPI document. */
export const components = z.registry<{ id: string }>()

const text = z.string()
const tokenId = z
  .int()
  .min(0)
  .max(2 ** 32 - 1)
const ids = z.array(tokenId).min(1)

/** A choice of forms, with one message for all of them. */
const oneOf = <T extends readonly [z.ZodType, ...z.ZodType[]]>(forms: T, expected: string) =>
  z.union(forms, {
    error: (issue) => `expected ${expected}${issue.input === undefined ? ', received undefined' : ''}`,
  })

/** One or more texts, each of at least so many characters. */
const texts = (min: number) =>
  oneOf(
    [text.min(min), z.array(text.min(min)).min(1), ids, z.array(ids).min(1)],
    `${min > 0 ? 'a text that is not empty' : 'a text'}, an array of texts, an array of token ids, or an array of such arrays`,
  )

/** Answers to each prompt; what a server allows is in its document. */
export const choices = z.int().min(1)
/** Tokens of an answer; likewise. */
export const tokens = z.int().min(1)

/** Left out and null are the same, as in OpenAI's API. */
const optional = <T extends z.ZodType>(schema: T) => schema.nullish()

export const modelName = z.string().describe('Name of a model, as /v1/models lists them.')

export const sessionId = z
  .string()
  .regex(/^[A-Za-z0-9_-]{1,128}$/, "expected 1 to 128 letters, digits, '_' and '-'")
  .describe('Keeps the context under this name, so that a later request computes only what is new.')

export const sampling = {
  model: modelName,
  temperature: optional(z.number().min(0).max(2)).describe('0 is greedy. Default: 1.'),
  top_p: optional(z.number().min(0).max(1)),
  n: optional(choices).describe('Answers to each prompt.'),
  stop: optional(oneOf([text.min(1), z.array(text.min(1)).max(16)], 'a text or at most 16 texts')),
  seed: optional(z.int()).describe('The same seed gives the same answer. Answer i of n has seed + i.'),
  frequency_penalty: optional(z.number().min(-2).max(2)),
  presence_penalty: optional(z.number().min(-2).max(2)),
  logit_bias: optional(z.record(z.string().regex(/^(0|[1-9]\d{0,9})$/), z.number().min(-100).max(100))),
  stream: optional(z.boolean()).describe('Server-sent events, of one or more tokens each.'),
  stream_options: optional(z.strictObject({ include_usage: optional(z.boolean()) })),
  user: optional(text).describe('Not used.'),
  // Not OpenAI's.
  top_k: optional(
    z
      .int()
      .min(0)
      .max(2 ** 31),
  ).describe('Keep the so many likeliest tokens; 0 is off.'),
  min_p: optional(z.number().min(0).max(1)).describe(
    'Keep tokens at least this likely relative to the likeliest.',
  ),
  repetition_penalty: optional(z.number().min(0.01).max(100)),
  session: optional(sessionId),
}

export const completionRequest = z
  .strictObject({
    ...sampling,
    prompt: texts(0),
    max_tokens: optional(z.union([tokens, z.literal(0)])).describe('Default: 16. 0 only with echo.'),
    echo: optional(z.boolean()).describe('Give the prompt back in front of the answer.'),
    logprobs: optional(z.int().min(0).max(20)).describe('Likeliest tokens to give at each position.'),
    best_of: optional(z.literal(1)).describe('Not supported.'),
    suffix: z.null().optional().describe('Not supported.'),
  })
  .register(components, { id: 'CompletionRequest' })

const content = oneOf(
  [text, z.array(z.strictObject({ type: z.literal('text'), text })).min(1)],
  'a text or an array of parts of type text',
)

const message = z.strictObject({
  role: z.enum(['system', 'developer', 'user', 'assistant']),
  content,
  name: optional(text),
  refusal: z.null().optional(),
})

export const chatRequest = z
  .strictObject({
    ...sampling,
    messages: z.array(message).min(1),
    max_tokens: optional(tokens),
    max_completion_tokens: optional(tokens).describe('Default: as many as the server allows.'),
    logprobs: optional(z.boolean()),
    top_logprobs: optional(z.int().min(0).max(20)),
    response_format: optional(z.strictObject({ type: z.literal('text') })).describe(
      'Nothing but text is supported.',
    ),
    tools: optional(z.array(z.unknown()).max(0)).describe('Not supported.'),
    tool_choice: optional(z.enum(['none', 'auto'])).describe('Without effect, as there are no tools.'),
    store: optional(z.literal(false)).describe('Nothing is stored.'),
    metadata: optional(z.record(z.string(), z.string())).describe('Not used.'),
  })
  .register(components, { id: 'ChatCompletionRequest' })

export const embeddingRequest = z
  .strictObject({
    model: modelName,
    input: texts(1),
    encoding_format: optional(z.enum(['float', 'base64'])),
    dimensions: optional(z.int().min(1)).describe('Keep the first so many components.'),
    user: optional(text).describe('Not used.'),
  })
  .register(components, { id: 'EmbeddingRequest' })

export type CompletionRequest = z.output<typeof completionRequest>
export type ChatRequest = z.output<typeof chatRequest>
export type EmbeddingRequest = z.output<typeof embeddingRequest>
/** What both kinds of generation have. */
export type SamplingRequest = Pick<CompletionRequest, Exclude<keyof typeof sampling, 'session'>>

const usage = z.strictObject({
  prompt_tokens: z.int(),
  completion_tokens: z.int(),
  total_tokens: z.int(),
  prompt_tokens_details: z.strictObject({
    cached_tokens: z
      .int()
      .describe(
        'Tokens known from the session, or without one from the prefix cache; they were not computed again.',
      ),
  }),
})

const finishReason = z.enum(['stop', 'length'])

const completionLogprobs = z.strictObject({
  tokens: z.array(z.string()),
  token_logprobs: z.array(z.number().nullable()),
  top_logprobs: z.array(z.record(z.string(), z.number()).nullable()),
  text_offset: z.array(z.int()),
})

export const completionResponse = z
  .strictObject({
    id: z.string(),
    object: z.literal('text_completion'),
    created: z.int(),
    model: z.string(),
    choices: z.array(
      z.strictObject({
        index: z.int(),
        text: z.string(),
        logprobs: completionLogprobs.nullable(),
        finish_reason: finishReason.nullable(),
      }),
    ),
    usage,
  })
  .register(components, { id: 'CompletionResponse' })

const topLogprob = z.strictObject({
  token: z.string(),
  logprob: z.number(),
  bytes: z.array(z.int()).nullable(),
})
const chatLogprobs = z.strictObject({
  content: z.array(z.strictObject({ ...topLogprob.shape, top_logprobs: z.array(topLogprob) })),
  refusal: z.null(),
})

export const chatResponse = z
  .strictObject({
    id: z.string(),
    object: z.literal('chat.completion'),
    created: z.int(),
    model: z.string(),
    choices: z.array(
      z.strictObject({
        index: z.int(),
        message: z.strictObject({ role: z.literal('assistant'), content: z.string(), refusal: z.null() }),
        logprobs: chatLogprobs.nullable(),
        finish_reason: finishReason,
      }),
    ),
    usage,
  })
  .register(components, { id: 'ChatCompletionResponse' })

export const embeddingResponse = z
  .strictObject({
    object: z.literal('list'),
    model: z.string(),
    data: z.array(
      z.strictObject({
        object: z.literal('embedding'),
        index: z.int(),
        embedding: z.union([z.array(z.number()), z.string().describe('base64 of little-endian f32')]),
      }),
    ),
    usage: z.strictObject({ prompt_tokens: z.int(), total_tokens: z.int() }),
  })
  .register(components, { id: 'EmbeddingResponse' })

export const modelObject = z
  .strictObject({
    id: z.string(),
    object: z.literal('model'),
    created: z.int(),
    owned_by: z.string(),
  })
  .register(components, { id: 'Model' })

export const modelList = z
  .strictObject({ object: z.literal('list'), data: z.array(modelObject) })
  .register(components, { id: 'ModelList' })

export const sessionDeleted = z
  .strictObject({ id: z.string(), object: z.literal('session.deleted'), deleted: z.literal(true) })
  .register(components, { id: 'SessionDeleted' })

export const status = z
  .strictObject({ status: z.enum(['ok', 'ready', 'draining', 'device_lost']) })
  .register(components, { id: 'Status' })

export const errorResponse = z
  .strictObject({
    error: z.strictObject({
      message: z.string(),
      type: z.string(),
      param: z.string().nullable(),
      code: z.string(),
    }),
  })
  .register(components, { id: 'Error' })
