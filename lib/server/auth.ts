import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { Context } from 'hono'
import { ApiError } from './errors.js'

/**
 * Checks API keys. Every key is compared with every request's, by digests of one length, so the time says nothing
 * of how near a guess came, nor of which key it was.
 */
export class KeyCheck {
  readonly #secret = randomBytes(32)
  readonly #digests: readonly Buffer[]

  constructor(keys: readonly string[]) {
    this.#digests = keys.map((key) => this.#digest(key))
  }

  #digest(key: string): Buffer {
    return createHmac('sha256', this.#secret).update(key).digest()
  }

  accepts(key: string): boolean {
    const digest = this.#digest(key)
    let found = false
    for (const known of this.#digests) found = timingSafeEqual(digest, known) || found
    return found
  }
}

/**
 * Who asks: a digest of the key, the same from run to run, that keeps one caller's sessions from another's; empty
 * where no keys are asked for.
 */
export function authenticate(c: Context, check: KeyCheck | undefined): string {
  if (!check) return ''
  const given = /^Bearer +(\S+) *$/i.exec(c.req.header('authorization') ?? '')?.[1]
  // A missing key takes the same way as a wrong one.
  if (check.accepts(given ?? '') && given !== undefined)
    return createHash('sha256').update(given).digest('hex')
  const message = 'no valid API key came with the request, expected the header: Authorization: Bearer <key>'
  throw new ApiError(401, 'invalid_api_key', message, { headers: { 'WWW-Authenticate': 'Bearer' } })
}
