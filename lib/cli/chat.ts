import { existsSync } from 'node:fs'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { Command } from 'commander'
import { MambaError } from '../errors.js'
import type { Completion } from '../generate.js'
import type { Mamba } from '../model.js'
import type { Session } from '../session.js'
import {
  addExamples,
  addModelOptions,
  addSamplingOptions,
  generateOptions,
  withModel,
  type ModelOptions,
  type SamplingOptions,
} from './arguments.js'
import { fileError } from './input.js'
import { interrupt, interrupted } from './interrupt.js'
import { openSession } from './run.js'
import { print, printJson, styled } from './terminal.js'

interface ChatOptions extends ModelOptions, SamplingOptions {
  system?: string
  session?: string
  json?: boolean
}

/** One turn of a conversation. */
interface Message {
  role: 'system' | 'user' | 'assistant'
  content: string
}

/** `node-mamba chat`. */
export function chatCommand(): Command {
  const command = new Command('chat')
    .summary('a conversation with a model')
    .description(
      "A conversation: a line, the model's reply, and so on; end it with Ctrl-D or /exit. Ctrl-C stops a reply. " +
        'Lines may come from a pipe, too.',
    )
  addModelOptions(command)
  addSamplingOptions(command)
    .option('--system <text>', 'what the conversation begins with')
    .option(
      '--session <file>',
      'keep the conversation there (its state; its messages in <file>.messages.json), and go on with it',
    )
    .option('--json', 'each reply as one JSON object: text, finishReason, usage')
    .action(chat)
  return addExamples(command, {
    'Talk, and go on tomorrow:': 'node-mamba chat -m ./mamba-chat --session ~/talk.session',
    'Questions from a file:': 'node-mamba chat -m ./mamba-chat --json < questions.txt',
  })
}

async function chat(options: ChatOptions): Promise<void> {
  await withModel(options, async (model) => {
    const conversation = await Conversation.open(model, options)
    const terminal = process.stdin.isTTY && process.stdout.isTTY
    const lines = createInterface({ input: process.stdin, ...(terminal && { output: process.stdout }) })
    /** Stops the reply that is being given. */
    let reply: AbortController | undefined
    // In a terminal Ctrl-C is a key that readline reads; without one it is a signal, which ends the program.
    lines.on('SIGINT', () => (reply ? reply.abort() : interrupt('SIGINT')))
    interrupted.addEventListener('abort', () => lines.close(), { once: true })

    if (terminal) lines.setPrompt(`${styled(process.stdout, 'cyan', '>')} `)
    if (terminal) lines.prompt()
    for await (const line of lines) {
      if (interrupted.aborted || line.trim() === '/exit') break
      if (line.trim() !== '') {
        reply = new AbortController()
        const show = (text: string) => (options.json ? undefined : print(text))
        const completion = await conversation.say(line, AbortSignal.any([interrupted, reply.signal]), show)
        reply = undefined
        if (!options.json) await print('\n')
        else if (completion) {
          const { text, finishReason, usage } = completion
          await printJson({ text, finishReason, usage })
        }
      }
      if (terminal) lines.prompt()
    }
    lines.close()
  })
}

/** A conversation, and the state after all of it but the last reply. */
class Conversation {
  readonly #model: Mamba
  readonly #options: ChatOptions
  readonly #turns: Turns
  #session: Session
  /** The text that the session has read. */
  #read: string
  readonly #messages: Message[]

  private constructor(
    model: Mamba,
    options: ChatOptions,
    turns: Turns,
    session: Session,
    read: string,
    messages: Message[],
  ) {
    this.#model = model
    this.#options = options
    this.#turns = turns
    this.#session = session
    this.#read = read
    this.#messages = messages
  }

  /** A new one, or that of the session's file. */
  static async open(model: Mamba, options: ChatOptions): Promise<Conversation> {
    const turns = await turnsOf(model)
    const file = options.session
    const start: Message[] = options.system === undefined ? [] : [{ role: 'system', content: options.system }]
    if (file === undefined || !existsSync(messagesFile(file))) {
      const session = file === undefined ? model.session() : await openSession(model, file)
      return new Conversation(model, options, turns, session, '', start)
    }
    const { tokens, messages } = await readMessages(messagesFile(file))
    const restored = existsSync(file) ? await model.restore(file) : undefined
    // Two files cannot be written at once: where the state is that of another turn, it is computed again.
    const fits = restored?.tokens === tokens
    const read = fits ? await turns.render(messages.slice(0, -1)) : ''
    return new Conversation(model, options, turns, fits ? restored : model.session(), read, messages)
  }

  /** Says something and gives the reply; undefined if it was stopped. What was said of it is kept either way. */
  async say(
    content: string,
    signal: AbortSignal,
    show: (text: string) => Promise<void> | undefined,
  ): Promise<Completion | undefined> {
    this.#messages.push({ role: 'user', content })
    const text = await this.#turns.render(this.#messages)
    // Only what is new is read. A template may write what came before in another way; then all of it is.
    if (!text.startsWith(this.#read)) [this.#session, this.#read] = [this.#model.session(), '']
    await this.#session.append(text.slice(this.#read.length), { signal: interrupted })
    this.#read = text

    // The session stays before the reply: what a stop text cut off of it is no part of the conversation.
    const options = generateOptions(this.#options)
    const stop = [...(this.#options.stop ?? []), ...this.#turns.stop]
    const { stopTokens } = this.#turns
    const generation = this.#session.fork().generate({ ...options, stop, stopTokens, signal })
    let said = ''
    try {
      for await (const { text } of generation) {
        const shown = said === '' ? text.trimStart() : text
        said += shown
        await show(shown)
      }
      return { ...(await generation.result), text: said }
    } catch (error) {
      if (signal.aborted) return undefined
      throw error
    } finally {
      this.#messages.push({ role: 'assistant', content: said.trimEnd() })
      await this.#save()
    }
  }

  async #save(): Promise<void> {
    const file = this.#options.session
    if (file === undefined) return
    await this.#session.save(file)
    await writeMessages(messagesFile(file), { tokens: this.#session.tokens, messages: this.#messages })
  }
}

/** How a conversation is written for the model, up to where its reply begins, and what ends the reply. */
interface Turns {
  render(messages: readonly Message[]): Promise<string>
  stop: string[]
  stopTokens: number[]
}

/** As the checkpoint's chat template has it; without one, in plain turns. */
async function turnsOf(model: Mamba): Promise<Turns> {
  const template = await model.chatTemplate()
  if (!template)
    return { render: async (messages) => plainTurns(messages), stop: ['\nUser:'], stopTokens: [] }
  const stopTokens = template.endOfTurn(model.tokenizer)
  return { render: (messages) => template.render(messages), stop: [], stopTokens }
}

function plainTurns(messages: readonly Message[]): string {
  const names = { system: '', user: 'User: ', assistant: 'Assistant: ' }
  return `${messages.map(({ role, content }) => `${names[role]}${content}\n`).join('')}Assistant:`
}

/** What `--session` keeps beside the state; `tokens` is the length of that state's context. */
interface SavedMessages {
  tokens: number
  messages: Message[]
}

function messagesFile(session: string): string {
  return `${session}.messages.json`
}

async function readMessages(file: string): Promise<SavedMessages> {
  try {
    const saved = JSON.parse(await readFile(file, 'utf8')) as SavedMessages
    const whole = saved.messages.every(
      ({ role, content }) => typeof role === 'string' && typeof content === 'string',
    )
    if (whole && Number.isSafeInteger(saved.tokens)) return saved
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code) throw fileError(error, file)
  }
  throw new MambaError('SESSION_INVALID', `${file} does not hold a conversation that this command wrote`)
}

async function writeMessages(file: string, saved: SavedMessages): Promise<void> {
  try {
    await writeFile(`${file}.new`, `${JSON.stringify(saved, null, 2)}\n`)
    await rename(`${file}.new`, file)
  } catch (error) {
    throw fileError(error, file)
  }
}
