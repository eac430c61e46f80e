import type { Context } from 'hono'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { MambaError, type MambaErrorCode } from '../errors.js'

/** What OpenAI's clients understand as an error. */
export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string }
}

/** An error with the HTTP status that it is answered with. */
export class ApiError extends Error {
  override readonly name = 'ApiError'
  readonly status: ContentfulStatusCode
  readonly code: string
  /** The field of the request that it is about. */
  readonly param: string | null
  /** Further headers of the answer. */
  readonly headers: Record<string, string>

  constructor(
    status: ContentfulStatusCode,
    code: string,
    message: string,
    options: { param?: string; headers?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause })
    this.status = status
    this.code = code
    this.param = options.param ?? null
    this.headers = options.headers ?? {}
  }

  get body(): ErrorBody {
    const { message, param, code } = this
    return { error: { message, type: typeOf(this.status), param, code } }
  }

  toResponse(c: Context): Response {
    return c.json(this.body, this.status, this.headers)
  }
}

function typeOf(status: number): string {
  if (status === 401) return 'authentication_error'
  if (status === 403) return 'permission_error'
  if (status === 429) return 'rate_limit_error'
  return status < 500 ? 'invalid_request_error' : 'server_error'
}

const statuses: Partial<Record<MambaErrorCode, ContentfulStatusCode>> = {
  INVALID_ARGUMENT: 400,
  OPTION_INVALID: 400,
  EMPTY_PROMPT: 400,
  TOKEN_OUT_OF_RANGE: 400,
  TOKENIZER_MISSING: 400,
  CHAT_TEMPLATE_MISSING: 400,
  CHAT_TEMPLATE_FAILED: 400,
  SESSION_BUSY: 409,
  SESSION_MISMATCH: 409,
  SESSION_INVALID: 409,
  SESSION_VERSION: 409,
  QUEUE_FULL: 429,
  CHAT_TEMPLATE_TIMEOUT: 500,
  OUT_OF_MEMORY: 503,
  DEVICE_LOST: 503,
  MODEL_DISPOSED: 503,
  SESSION_STORE_UNAVAILABLE: 503,
}

/** Any error as one that can be answered. What is not the caller's to know stays in `cause`. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (error instanceof MambaError) {
    if (error.code === 'ABORTED' && error.cause instanceof ApiError) return error.cause
    const status = statuses[error.code]
    if (status) {
      const headers: Record<string, string> = status === 429 || status === 503 ? { 'Retry-After': '1' } : {}
      return new ApiError(status, error.code.toLowerCase(), error.message, { headers, cause: error })
    }
  }
  return new ApiError(500, 'internal_error', 'the server failed on this request', { cause: error })
}
