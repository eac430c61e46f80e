import type { Context } from 'hono'
import { readBody } from './body.js'
import { toPrompts } from './completions.js'
import type { Env, ServerContext } from './context.js'
import { ApiError } from './errors.js'
import { countTokens } from './generation.js'
import { embeddingRequest } from './schemas.js'

/** POST /v1/embeddings */
export async function embeddings(c: Context<Env>, context: ServerContext): Promise<Response> {
  const exchange = context.begin(c)
  return exchange.answer(async () => {
    const body = await readBody(c, embeddingRequest, context.limits.bodyBytes)
    const { name, model } = context.model(body.model)
    const texts = toPrompts(body.input)
    if (texts.length > context.limits.texts) {
      const message = `there are ${texts.length} texts, expected at most ${context.limits.texts}`
      throw new ApiError(400, 'too_many_texts', message, { param: 'input' })
    }
    let tokens = 0
    for (const text of texts) {
      tokens += typeof text === 'string' ? await countTokens(model, text) : text.length
      if (tokens > context.limits.promptTokens) {
        const message = `the texts have more tokens than this server takes, expected at most ${context.limits.promptTokens}`
        throw new ApiError(400, 'context_length_exceeded', message, { param: 'input' })
      }
    }
    const vectors = await model.embed(texts, {
      ...exchange.queued,
      ...(body.dimensions != null && { dimensions: body.dimensions }),
    })
    context.metrics.tokens(name, { prompt: tokens })
    const encode = body.encoding_format === 'base64' ? toBase64 : (vector: Float32Array) => Array.from(vector)
    return c.json({
      object: 'list',
      model: name,
      data: vectors.map((vector, index) => ({ object: 'embedding', index, embedding: encode(vector) })),
      usage: { prompt_tokens: tokens, total_tokens: tokens },
    })
  })
}

/** Little-endian f32, as OpenAI's clients read it. */
function toBase64(vector: Float32Array): string {
  return Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString('base64')
}
