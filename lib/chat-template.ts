import { spawn, type ChildProcess } from 'node:child_process'
import { readFile, stat } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { MambaError } from './errors.js'
import { shown } from './options.js'
import { needPeers } from './peers.js'
import type { Tokenizer } from './tokenizer.js'

/** One turn of a conversation. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, or whatever else the checkpoint's template knows. */
  role: string
  /** What was said. */
  content: string
  /** Who said it, where the template uses that. */
  name?: string
}

/** What the process is asked. */
interface TemplateRequest {
  source: string
  /** Left out, the template is only parsed. */
  context?: Record<string, unknown>
}

/** What it answers: a text, or what went wrong at which stage. */
type TemplateReply = { text: string } | { stage: 'parse' | 'render'; message: string }

/** Milliseconds that a template may take for one conversation; real ones take one or two. */
const TIME_LIMIT = 2000
/** MiB that it may fill. */
const MEMORY_LIMIT = 128

/**
 * A checkpoint's chat template: turns messages into the text that the model was trained on. Needs the package
 * `@huggingface/jinja`.
 *
 * A template is a program of the checkpoint's, so it runs in a process of its own, with a limit on time and memory: a loop over
 * a billion numbers would take this process with it.
 */
export class ChatTemplate {
  readonly #source: string
  readonly #specials: Record<string, string>
  #child: ChildProcess | undefined
  #last: Promise<unknown> = Promise.resolve()

  /** The text of the token that ends a turn, where the checkpoint names one: generation ends there. */
  readonly eosToken: string | undefined

  private constructor(source: string, specials: Record<string, string>) {
    this.#source = source
    this.#specials = specials
    this.eosToken = specials.eos_token
  }

  /**
   * The template of the checkpoint at `path` (its folder, or a file in it): `chat_template.jinja`, or the entry of
   * tokenizer_config.json. Undefined where it has none.
   *
   * @throws {@link MambaError} `CHAT_TEMPLATE_INVALID`, `PEER_MISSING`, `IO_ERROR`
   */
  static async read(path: string): Promise<ChatTemplate | undefined> {
    const folder = (await stat(path).catch(() => undefined))?.isDirectory() ? path : dirname(path)
    const configFile = join(folder, 'tokenizer_config.json')
    const config = parseConfig(await readIfThere(configFile), configFile)
    const source = (await readIfThere(join(folder, 'chat_template.jinja'))) ?? templateOf(config, configFile)
    return source === undefined ? undefined : ChatTemplate.#checked(source, config)
  }

  /**
   * A template from a text, for a checkpoint that came without one. `specials` are the texts of special tokens
   * that it names, such as `eos_token`.
   *
   * @throws {@link MambaError} `CHAT_TEMPLATE_INVALID`, `PEER_MISSING`
   */
  static async from(source: string, specials: Record<string, string> = {}): Promise<ChatTemplate> {
    if (typeof source !== 'string') {
      throw new MambaError(
        'CHAT_TEMPLATE_INVALID',
        `the chat template is ${shown(source)}, expected a Jinja text`,
      )
    }
    return ChatTemplate.#checked(source, specials)
  }

  static async #checked(source: string, config: Record<string, unknown>): Promise<ChatTemplate> {
    needPeers('a chat template', ['@huggingface/jinja'])
    const template = new ChatTemplate(source, specialsOf(config))
    await template.#ask({ source })
    return template
  }

  /**
   * The text of a conversation. It ends where the assistant's turn begins, unless `addGenerationPrompt` is false.
   *
   * @throws {@link MambaError} `CHAT_TEMPLATE_FAILED` (with the template's own words where it refuses the messages),
   * `CHAT_TEMPLATE_TIMEOUT`, `INVALID_ARGUMENT`
   */
  async render(messages: readonly ChatMessage[], { addGenerationPrompt = true } = {}): Promise<string> {
    if (!Array.isArray(messages)) {
      throw new MambaError('INVALID_ARGUMENT', `the messages are ${shown(messages)}, expected an array`)
    }
    const context = { ...this.#specials, messages, add_generation_prompt: addGenerationPrompt }
    return this.#ask({ source: this.#source, context })
  }

  /** The ids that end a turn besides the model's own: that of `eosToken`, where the tokenizer has it as one token. */
  endOfTurn(tokenizer: Tokenizer): number[] {
    const ids = this.eosToken === undefined ? [] : [...tokenizer.encode(this.eosToken)]
    return ids.length === 1 ? ids : []
  }

  /** Ends its process. It is started again when the template is used again. */
  async close(): Promise<void> {
    await this.#last
    this.#child?.disconnect()
    this.#child = undefined
  }

  /** One request at a time, so that the limit is each one's own. */
  #ask(request: TemplateRequest): Promise<string> {
    const answer = this.#last.then(() => this.#askNow(request))
    this.#last = answer.catch(() => {})
    return answer
  }

  async #askNow(request: TemplateRequest): Promise<string> {
    // One that somebody killed while it was idle is no longer connected.
    const child = this.#child?.connected ? this.#child : await started()
    this.#child = child
    keepAlive(child, true)
    return new Promise<string>((resolve, reject) => {
      const end = () => {
        clearTimeout(timer)
        child.off('message', answered).off('exit', ended)
        keepAlive(child, false)
      }
      const answered = (reply: TemplateReply) => {
        end()
        if ('text' in reply) resolve(reply.text)
        else reject(failure(reply))
      }
      const stop = (reason: string) => {
        end()
        this.#child = undefined
        child.kill('SIGKILL')
        const expected = `expected to end within ${TIME_LIMIT / 1000} s and ${MEMORY_LIMIT} MiB`
        reject(new MambaError('CHAT_TEMPLATE_TIMEOUT', `the chat template ${reason}, ${expected}`))
      }
      const ended = () => stop('ended the process that it ran in')
      const timer = setTimeout(() => stop('goes on and on'), TIME_LIMIT)
      child.on('message', answered).on('exit', ended)
      try {
        child.send(request)
      } catch (cause) {
        end()
        const message = `the messages hold what cannot be copied: ${(cause as Error).message}`
        reject(new MambaError('INVALID_ARGUMENT', message, { cause }))
      }
    })
  }
}

/**
 * What the process runs. A text, so that no file has to be found in whatever a bundler makes of the package. Its own
 * time limit is for when nobody is left to kill it.
 */
const source = `
const { Template } = require(process.argv[1])
const { runInThisContext } = require('node:vm')
let parsed
process.on('message', ({ source, context }) => {
  let stage = 'parse'
  globalThis.answer = () => {
    if (parsed?.source !== source) parsed = { source, template: new Template(source) }
    stage = 'render'
    return { text: context ? parsed.template.render(context) : '' }
  }
  try {
    process.send(runInThisContext('answer()', { timeout: ${2 * TIME_LIMIT} }))
  } catch (error) {
    process.send({ stage, message: error.message })
  }
})
process.on('disconnect', () => process.exit())
process.send('ready')
`

/** A process that has loaded what it needs, so that the time limit is the template's alone. */
async function started(): Promise<ChildProcess> {
  const jinja = createRequire(import.meta.url).resolve('@huggingface/jinja')
  const child = spawn(process.execPath, [`--max-old-space-size=${MEMORY_LIMIT}`, '-e', source, jinja], {
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    env: { ELECTRON_RUN_AS_NODE: '1' }, // within Electron, execPath is Electron; nothing else is the template's business
    serialization: 'advanced',
  })
  await new Promise<void>((resolve, reject) => {
    const end = (why?: string) => {
      child.off('error', failed).off('exit', ended).off('message', ready)
      if (why === undefined) resolve()
      else reject(new MambaError('INTERNAL', `the process for chat templates does not start: ${why}`))
    }
    const failed = (error: Error) => end(error.message)
    const ended = (code: number | null) => end(`exit code ${code}`)
    const ready = () => end()
    child.on('error', failed).on('exit', ended).on('message', ready)
  })
  child.on('error', () => {}) // a message to a process that is ending; its exit says the rest
  return child
}

/** An idle process must not keep this one alive. */
function keepAlive(child: ChildProcess, on: boolean): void {
  if (on) {
    child.ref()
    child.channel?.ref()
  } else {
    child.unref()
    child.channel?.unref()
  }
}

function failure({ stage, message }: { stage: 'parse' | 'render'; message: string }): MambaError {
  return stage === 'parse'
    ? new MambaError('CHAT_TEMPLATE_INVALID', `the chat template is not valid Jinja: ${message}`)
    : new MambaError('CHAT_TEMPLATE_FAILED', `the chat template refused the messages: ${message}`)
}

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new MambaError('IO_ERROR', `${file} cannot be read: ${(cause as Error).message}`, { cause })
  }
}

function parseConfig(text: string | undefined, file: string): Record<string, unknown> {
  if (text === undefined) return {}
  try {
    const config: unknown = JSON.parse(text)
    if (typeof config === 'object' && config !== null) return config as Record<string, unknown>
  } catch (cause) {
    throw new MambaError('CHAT_TEMPLATE_INVALID', `${file} is not valid JSON: ${(cause as Error).message}`, {
      cause,
    })
  }
  throw new MambaError('CHAT_TEMPLATE_INVALID', `${file} is not an object, expected a tokenizer's settings`)
}

/** The entry `chat_template`: a text, or a list of named ones, of which `default` is taken. */
function templateOf(config: Record<string, unknown>, file: string): string | undefined {
  const entry = config.chat_template
  if (entry === undefined || entry === null) return undefined
  const chosen: unknown = Array.isArray(entry)
    ? (entry as { name?: unknown; template?: unknown }[]).find((item) => item?.name === 'default')?.template
    : entry
  if (typeof chosen === 'string') return chosen
  throw new MambaError(
    'CHAT_TEMPLATE_INVALID',
    `the entry chat_template of ${file} is ${shown(entry)}, expected a text or a list with one named 'default'`,
  )
}

/** `bos_token` and the like: a text, or an object that holds it. */
function specialsOf(config: Record<string, unknown>): Record<string, string> {
  const specials: Record<string, string> = {}
  for (const [name, value] of Object.entries(config)) {
    if (!name.endsWith('_token')) continue
    const text: unknown =
      typeof value === 'object' && value !== null && 'content' in value ? value.content : value
    if (typeof text === 'string') specials[name] = text
  }
  return specials
}
