import type { Context } from 'hono'
import type { z } from 'zod'
import { ApiError } from './errors.js'

/** Arrays and objects within each other; the API's own bodies have six at most. */
const MAX_DEPTH = 32

/**
 * The request's body, as `schema` says.
 *
 * @throws {@link ApiError} 400, 413, 415
 */
export async function readBody<S extends z.ZodType>(
  c: Context,
  schema: S,
  maxBytes: number,
): Promise<z.output<S>> {
  // Pages of other sites can send other types without asking first (CORS).
  if (!/^application\/json *(;|$)/i.test(c.req.header('content-type') ?? '')) {
    throw new ApiError(
      415,
      'unsupported_media_type',
      'the body is not JSON, expected content-type: application/json',
    )
  }
  const bytes = await readBytes(c, maxBytes)
  checkDepth(bytes)
  const result = schema.safeParse(parse(bytes))
  if (result.success) return result.data
  throw fromIssue(result.error.issues[0]!)
}

async function readBytes(c: Context, maxBytes: number): Promise<Uint8Array> {
  const tooLarge = () =>
    new ApiError(413, 'body_too_large', `the body is too large, expected at most ${maxBytes} bytes`)
  const incomplete = (cause: unknown) => {
    throw new ApiError(400, 'body_incomplete', 'the body ended too early', { cause })
  }
  const length = Number(c.req.header('content-length'))
  if (length > maxBytes) throw tooLarge()
  // A body is no longer than it says. Reading it at once is much cheaper than as a stream.
  if (length <= maxBytes) return new Uint8Array(await c.req.arrayBuffer().catch(incomplete))
  const chunks: Uint8Array[] = []
  let size = 0
  const reader = c.req.raw.body?.getReader() as ReadableStreamDefaultReader<Uint8Array> | undefined
  if (!reader) return new Uint8Array()
  for (;;) {
    const { done, value } = await reader.read().catch(incomplete)
    if (done) break
    size += value.length
    if (size > maxBytes) {
      void discard(reader).catch(() => {})
      throw tooLarge()
    }
    chunks.push(value)
  }
  return Buffer.concat(chunks)
}

/** Bytes of a body that is too large that are still read: to cancel it would cut the connection before the answer. */
const MAX_DISCARDED = 64 * 2 ** 20

async function discard(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<void> {
  for (let size = 0; size < MAX_DISCARDED;) {
    const { done, value } = await reader.read()
    if (done) return
    size += value.length
  }
  await reader.cancel()
}

/** Counts brackets outside of strings, before anything that recurses sees the text. */
function checkDepth(bytes: Uint8Array): void {
  let depth = 0
  let inString = false
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!
    if (inString) {
      if (byte === 0x5c)
        i++ // a backslash: whatever follows is not the end
      else if (byte === 0x22) inString = false
    } else if (byte === 0x22) inString = true
    else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > MAX_DEPTH) {
        throw new ApiError(
          400,
          'json_too_deep',
          `the body's JSON is too deep, expected at most ${MAX_DEPTH} levels`,
        )
      }
    } else if (byte === 0x5d || byte === 0x7d) depth--
  }
}

const decoder = new TextDecoder('utf-8', { fatal: true })

function parse(bytes: Uint8Array): unknown {
  let text
  try {
    text = decoder.decode(bytes)
  } catch (cause) {
    throw new ApiError(400, 'invalid_utf8', 'the body is not valid UTF-8', { cause })
  }
  try {
    return JSON.parse(text)
  } catch (cause) {
    const message = `the body is not valid JSON: ${(cause as Error).message}`
    throw new ApiError(400, 'invalid_json', message, { cause })
  }
}

/** What is wrong with a field, as OpenAI names it. */
function fromIssue(issue: z.core.$ZodIssue): ApiError {
  const path = issue.path.map(String).join('.')
  if (issue.code === 'unrecognized_keys') {
    const param = [...issue.path.map(String), issue.keys[0]!].join('.')
    return new ApiError(400, 'unknown_parameter', `there is no parameter '${param}'`, { param })
  }
  if (issue.code === 'invalid_type' && issue.input === undefined && issue.message.endsWith('undefined')) {
    const message = `the parameter '${path}' is missing, expected ${issue.expected}`
    return new ApiError(400, 'missing_required_parameter', message, { param: path })
  }
  const message = path
    ? `the parameter '${path}' is not valid: ${issue.message}`
    : `the body is not valid: ${issue.message}`
  return new ApiError(400, 'invalid_value', message, path ? { param: path } : {})
}
