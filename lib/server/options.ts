import { MambaError } from '../errors.js'
import { ChatTemplate } from '../chat-template.js'
import { Mamba } from '../model.js'
import { Options, invalid, shown } from '../options.js'
import type { SessionStore } from './session-store.js'

/** What a request may ask for. */
export interface Limits {
  /** Bytes of a request's body; more is refused with 413. Default: 4 MiB. */
  bodyBytes: number
  /** Tokens of all prompts or texts of a request. Default: 32,768. */
  promptTokens: number
  /** Tokens that a request may ask for in each answer. Default: 4,096. */
  completionTokens: number
  /** Answers of a request: prompts × `n`. Default: 128. */
  choices: number
  /** Texts of a request for embeddings. Default: 2,048. */
  texts: number
  /** Seconds that a request may take, waiting included; then it ends with 504. Default: 300. */
  requestSeconds: number
  /** Seconds that a streaming client may go without reading; then it is disconnected. Default: 30. */
  stallSeconds: number
}

/** What the app serves, and to whom. */
export interface AppOptions {
  /** A model, which is then called `default`, or models by the names that requests use. */
  models: Mamba | Readonly<Record<string, Mamba>>
  /** Chat templates for models whose checkpoint has none (or another), by the models' names. */
  chatTemplates?: Readonly<Record<string, ChatTemplate>>
  /** Keys of which a request must bear one (`Authorization: Bearer …`). Default: none is asked for. */
  apiKeys?: readonly string[]
  /** Origins whose pages may call, or `*` for all. Default: none. */
  corsOrigins?: readonly string[]
  /**
   * Names that the `Host` header may have, without port, against DNS rebinding. Default: any; `serve` on a loopback
   * address takes the loopback names only.
   */
  hosts?: readonly string[]
  /** What a request may ask for. */
  limits?: Partial<Limits>
  /** Where sessions are kept. Default: in memory, the latest 256 MiB. */
  sessions?: SessionStore
  /** Folder of the playground's built files, served at `/`. Default: none is served. */
  playground?: string | URL
}

export const appOptionNames = [
  'models',
  'chatTemplates',
  'apiKeys',
  'corsOrigins',
  'hosts',
  'limits',
  'sessions',
  'playground',
] as const satisfies readonly (keyof AppOptions)[]

/** The loopback names in a `Host` header. */
export const loopbackHosts = ['127.0.0.1', '[::1]', 'localhost']

const defaultLimits: Limits = {
  bodyBytes: 4 * 2 ** 20,
  promptTokens: 32_768,
  completionTokens: 4096,
  choices: 128,
  texts: 2048,
  requestSeconds: 300,
  stallSeconds: 30,
}

/** Timers end at once above 2^31 ms, and two limits may be added. */
const MAX_SECONDS = 1_000_000

export function readLimits(limits: Partial<Limits> | undefined): Limits {
  const names = Object.keys(defaultLimits) as (keyof Limits)[]
  const read = new Options(limits, names)
  const result = { ...defaultLimits }
  for (const name of names) {
    const seconds = name.endsWith('Seconds')
    const value = seconds ? read.number(name) : read.integer(name, 1)
    const most = seconds ? MAX_SECONDS : 2 ** 31
    if (value !== undefined && !(value > 0 && value <= most)) {
      throw invalid(`limits.${name}`, value, `a number above 0, at most ${most}`)
    }
    result[name] = value ?? result[name]
  }
  return result
}

export function readDrainSeconds(seconds: number | undefined): number {
  if (seconds === undefined) return 30
  if (seconds >= 0 && seconds <= MAX_SECONDS) return seconds
  throw invalid('drainSeconds', seconds, `a number from 0 to ${MAX_SECONDS}`)
}

/** A model's name has no path in it but one slash, as on the Hugging Face hub. */
const modelName = /^[A-Za-z0-9][\w.:-]*(\/[A-Za-z0-9][\w.:-]*)?$/

export function checkModelName(name: string): void {
  if (modelName.test(name)) return
  throw invalid('models', name, "a name of letters, digits and '.', '_', '-', ':', with one '/' at most")
}

export function readModels(models: AppOptions['models']): Map<string, Mamba> {
  const entries = models instanceof Mamba ? { default: models } : models
  if (typeof entries !== 'object' || entries === null || Object.keys(entries).length === 0) {
    throw new MambaError(
      'INVALID_ARGUMENT',
      `the models are ${shown(models)}, expected a model or models by name`,
    )
  }
  for (const [name, model] of Object.entries(entries)) {
    checkModelName(name)
    if (!(model instanceof Mamba)) throw invalid(`models.${name}`, model, 'a Mamba model')
  }
  return new Map(Object.entries(entries))
}

export function readChatTemplates(
  { chatTemplates = {} }: Pick<AppOptions, 'chatTemplates'>,
  models: ReadonlyMap<string, Mamba>,
): Readonly<Record<string, ChatTemplate>> {
  for (const [name, template] of Object.entries(chatTemplates)) {
    if (!models.has(name)) {
      const known = [...models.keys()].join(', ')
      throw invalid('chatTemplates', name, `the name of a model that is served: ${known}`)
    }
    if (!(template instanceof ChatTemplate))
      throw invalid(`chatTemplates.${name}`, template, 'a ChatTemplate')
  }
  return chatTemplates
}

export function readSessions(sessions: unknown): SessionStore | undefined {
  if (sessions === undefined) return undefined
  const methods = ['get', 'set', 'delete', 'close'] as const
  const store = sessions as SessionStore | null
  if (methods.every((method) => typeof store?.[method] === 'function')) return store!
  throw invalid('sessions', sessions, `a store with ${methods.join(', ')}`)
}

export function readStrings(option: string, value: unknown): readonly string[] | undefined {
  if (value === undefined) return undefined
  if (Array.isArray(value) && value.every((item) => typeof item === 'string' && item.length > 0)) return value
  throw invalid(option, value, 'an array of texts')
}
