import type { Abortable } from './call.js'
import { MambaError } from './errors.js'

/** A value as a message shows it: short, and telling `'1'` from `1`. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return `'${value.length > 60 ? `${value.slice(0, 60)}…` : value}'`
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'object' && value !== null) {
    return Array.isArray(value) ? `an array of ${value.length}` : `a ${value.constructor?.name ?? 'object'}`
  }
  return String(value)
}

export function invalid(option: string, value: unknown, expected: string): MambaError {
  return new MambaError('OPTION_INVALID', `option \`${option}\` is ${shown(value)}, expected ${expected}`)
}

/**
 * Reads the options of one call: checks types here (ranges are the core's to know), and refuses names that
 * the call does not have, since a misspelt option would otherwise silently do nothing.
 */
export class Options<T extends object> {
  readonly #values: Record<string, unknown>

  constructor(options: T | undefined, names: readonly (keyof T & string)[]) {
    if (options !== undefined && (typeof options !== 'object' || options === null)) {
      throw new MambaError('INVALID_ARGUMENT', `the options are ${shown(options)}, expected an object`)
    }
    this.#values = (options ?? {}) as Record<string, unknown>
    for (const name in this.#values) {
      if ((names as readonly string[]).includes(name)) continue
      const near = nearest(name, names)
      throw new MambaError(
        'OPTION_INVALID',
        `there is no option \`${name}\`${near ? `; did you mean \`${near}\`?` : ''} Expected: ${names.join(', ')}`,
      )
    }
  }

  #read<V>(name: keyof T & string, expected: string, fits: (value: unknown) => boolean): V | undefined {
    const value = this.#values[name] ?? undefined
    if (value !== undefined && !fits(value)) throw invalid(name, value, expected)
    return value as V | undefined
  }

  /** A number, whatever its range; NaN goes on to the core, which refuses it by name. */
  number(name: keyof T & string): number | undefined {
    return this.#read(name, 'a number', (value) => typeof value === 'number')
  }

  /** An integer from `min`, at most 2^32 − 1 (or 2^53 − 1 if `max` says so). */
  integer(name: keyof T & string, min = 0, max = 2 ** 32 - 1): number | undefined {
    return this.#read(
      name,
      `an integer from ${min} to ${max === Number.MAX_SAFE_INTEGER ? '2^53 - 1' : max}`,
      (value) => Number.isInteger(value) && (value as number) >= min && (value as number) <= max,
    )
  }

  boolean(name: keyof T & string): boolean | undefined {
    return this.#read(name, 'true or false', (value) => typeof value === 'boolean')
  }

  string(name: keyof T & string): string | undefined {
    return this.#read(name, 'a string', (value) => typeof value === 'string')
  }

  oneOf<V extends string>(name: keyof T & string, values: readonly V[]): V | undefined {
    const expected = values.map((value) => `'${value}'`).join(' or ')
    return this.#read(name, expected, (value) => (values as readonly unknown[]).includes(value))
  }

  function<F>(name: keyof T & string): F | undefined {
    return this.#read(name, 'a function', (value) => typeof value === 'function')
  }

  /** Whatever it is; the caller checks. */
  any(name: keyof T & string): unknown {
    return this.#values[name] ?? undefined
  }

  signal(this: Options<T & Abortable>): AbortSignal | undefined {
    return this.#read('signal', 'an AbortSignal', (value) => value instanceof AbortSignal)
  }
}

/** The name that a person probably meant: at most a third of its letters away. */
export function nearest(name: string, names: readonly string[]): string | undefined {
  return names
    .map((candidate) => ({ candidate, distance: editDistance(lowerCase(name), lowerCase(candidate)) }))
    .filter(({ candidate, distance }) => distance <= candidate.length / 3)
    .toSorted((a, b) => a.distance - b.distance)[0]?.candidate
}

/** `max_tokens`, `maxtokens` and `maxTokens` alike. */
function lowerCase(name: string): string {
  return name.toLowerCase().replaceAll(/[-_]/g, '')
}

/** Levenshtein's distance, one row at a time. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(replaced, row[j]! + 1, next[j - 1]! + 1))
    }
    row = next
  }
  return row[b.length]!
}
