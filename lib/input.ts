import { MambaError } from './errors.js'
import { shown } from './options.js'

/** Text, or the token ids that stand for it. Wherever text goes, ids may go. */
export type TextOrIds = string | readonly number[] | Uint32Array

/** What the addon takes. `what` names the argument in errors. */
export function toNative(input: TextOrIds, what = 'the text'): string | Uint32Array {
  return typeof input === 'string' ? input : toIds(input, what)
}

/** Token ids as the addon takes them; whether the vocabulary has them is checked there. */
export function toIds(ids: readonly number[] | Uint32Array, what = 'the token ids'): Uint32Array {
  if (ids instanceof Uint32Array) return ids
  if (!Array.isArray(ids)) {
    throw new MambaError(
      'INVALID_ARGUMENT',
      `${what} is ${shown(ids)}, expected a string, an array of token ids or a Uint32Array`,
    )
  }
  const wrong = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id > 0xffff_ffff)
  if (wrong === -1) return Uint32Array.from(ids)
  const id: unknown = ids[wrong]
  const [code, expected] = Number.isInteger(id)
    ? (['TOKEN_OUT_OF_RANGE', 'an id of the vocabulary'] as const)
    : (['INVALID_ARGUMENT', 'an integer'] as const)
  throw new MambaError(
    code,
    `token id ${shown(id)} at position ${wrong} of ${what} is not valid, expected ${expected}`,
  )
}
