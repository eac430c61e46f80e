import { MambaError } from './errors.js'
import { invalid, nearest, shown } from './options.js'

/** A field of a configuration: what it may hold, and how it is said in JSON Schema. */
export interface Field {
  /** The value if it is right; throws `OPTION_INVALID` with `path` otherwise. */
  read(value: unknown, path: string): unknown
  /** As draft 2020-12 of JSON Schema. */
  schema: object
}

const about = (description: string) => (description ? { description } : {})

/** A value of a simple kind. */
function simple(expected: string, schema: object, fits: (value: unknown) => boolean): Field {
  return {
    schema,
    read(value, path) {
      if (!fits(value)) throw invalid(path, value, expected)
      return value
    },
  }
}

export function text(description: string): Field {
  return simple('a string', { type: 'string', ...about(description) }, (value) => typeof value === 'string')
}

export function flag(description: string): Field {
  return simple(
    'true or false',
    { type: 'boolean', ...about(description) },
    (value) => typeof value === 'boolean',
  )
}

export function integer(min: number, description: string, max: number = Number.MAX_SAFE_INTEGER): Field {
  return simple(
    max < Number.MAX_SAFE_INTEGER ? `an integer from ${min} to ${max}` : `an integer from ${min}`,
    { type: 'integer', minimum: min, maximum: max, ...about(description) },
    (value) => Number.isInteger(value) && (value as number) >= min && (value as number) <= max,
  )
}

export function number(min: number, description: string, max = Number.MAX_VALUE): Field {
  return simple(
    max < Number.MAX_VALUE ? `a number from ${min} to ${max}` : `a number of at least ${min}`,
    { type: 'number', minimum: min, ...(max < Number.MAX_VALUE && { maximum: max }), ...about(description) },
    (value) => typeof value === 'number' && value >= min && value <= max,
  )
}

export function oneOf(values: readonly string[], description: string): Field {
  return simple(
    values.map((value) => `'${value}'`).join(' or '),
    { enum: values, ...about(description) },
    (value) => (values as readonly unknown[]).includes(value),
  )
}

/** Any object; somebody else looks into it. */
export function anyObject(description: string): Field {
  return simple(
    'an object',
    { type: 'object', ...about(description) },
    (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
  )
}

export function list(item: Field, description: string, length?: number): Field {
  const size = length === undefined ? {} : { minItems: length, maxItems: length }
  return {
    schema: { type: 'array', items: item.schema, ...size, ...about(description) },
    read(value, path) {
      if (!Array.isArray(value) || (length !== undefined && value.length !== length)) {
        throw invalid(path, value, length === undefined ? 'an array' : `an array of ${length}`)
      }
      return value.map((one, i) => item.read(one, `${path}[${i}]`))
    },
  }
}

/** An object of these fields and no others. */
export function object(
  fields: Record<string, Field>,
  { required = [], description = '' }: { required?: readonly string[]; description?: string } = {},
): Field {
  const properties = Object.fromEntries(Object.entries(fields).map(([name, { schema }]) => [name, schema]))
  return {
    schema: {
      type: 'object',
      properties,
      ...(required.length > 0 && { required }),
      additionalProperties: false,
      ...about(description),
    },
    read(value, path) {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        throw path
          ? invalid(path, value, 'an object')
          : new MambaError('INVALID_ARGUMENT', `the configuration is ${shown(value)}, expected an object`)
      }
      const at = (name: string) => (path ? `${path}.${name}` : name)
      const names = Object.keys(fields)
      const read: Record<string, unknown> = {}
      for (const [name, one] of Object.entries(value)) {
        const field = Object.hasOwn(fields, name) ? fields[name] : undefined
        if (!field) {
          const near = nearest(name, names)
          throw new MambaError(
            'OPTION_INVALID',
            `there is no option \`${at(name)}\`${near ? `; did you mean \`${at(near)}\`?` : ''} Expected: ${names.join(', ')}`,
          )
        }
        if (one !== undefined && one !== null) read[name] = field.read(one, at(name))
      }
      for (const name of required) {
        if (read[name] === undefined) throw invalid(at(name), undefined, 'a value')
      }
      return read
    },
  }
}

/** The first of the choices whose kind of value (a string, an array, an object) it is. */
export function either(
  choices: Partial<Record<'string' | 'array' | 'object', Field>>,
  expected: string,
): Field {
  return {
    schema: { anyOf: Object.values(choices).map(({ schema }) => schema) },
    read(value, path) {
      const kind = Array.isArray(value) ? 'array' : typeof value
      const choice = value === null ? undefined : choices[kind as keyof typeof choices]
      if (!choice) throw invalid(path, value, expected)
      return choice.read(value, path)
    },
  }
}
