import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { basename, extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { ChatTemplate } from '../chat-template.js'
import { MambaError } from '../errors.js'
import { Mamba, type DType, type LoadOptions } from '../model.js'
import {
  DiskSessions,
  MemorySessions,
  RedisSessions,
  serve,
  type Limits,
  type SessionStore,
} from '../server/index.js'
import { checkModelName, loopbackHosts, readDrainSeconds, readLimits } from '../server/options.js'
import { addExamples, addLoadOptions, integer, number, several } from './arguments.js'
import { fileError } from './input.js'
import { interrupted } from './interrupt.js'
import { Progress } from './progress.js'
import { bytes, print, printJson } from './terminal.js'

interface ServeCommandOptions {
  model?: string[]
  device?: LoadOptions['device']
  dtype?: DType
  threads?: number
  tokenizer?: string
  host: string
  port: number
  apiKeyFile?: string
  allowHost?: string[]
  corsOrigin?: string[]
  chatTemplate?: string
  sessions: string
  maxBatch?: number
  queue?: number
  prefixCache?: number
  maxBody?: number
  maxPromptTokens?: number
  maxTokens?: number
  requestSeconds?: number
  drainSeconds: number
  playground: boolean
  json?: boolean
}

/** `node-mamba serve`. */
export function serveCommand(): Command {
  const command = new Command('serve')
    .summary("serves models over OpenAI's API, and the playground")
    .description(
      "Serves models over OpenAI's API (completions, chat, embeddings), with a playground at /. Only this machine can " +
        'call unless --host says otherwise. Keys that callers must bear come from --api-key-file or from the ' +
        'environment variable NODE_MAMBA_API_KEYS (separated by commas).',
    )
  addLoadOptions(command)
    .option(
      '-m, --model <name=source>',
      'a model and its name in requests; may be given several times (default)',
      several,
    )
    .option('--host <address>', 'address to listen on; 0.0.0.0 is all of them', '127.0.0.1')
    .option('-p, --port <number>', 'port to listen on, 0 is any that is free', integer(), 8000)
    .option('--api-key-file <file>', 'keys, a line each; # begins a comment')
    .option(
      '--allow-host <name>',
      'a name besides the loopback ones that requests may call it by, as behind a proxy; may be given several times',
      several,
    )
    .option(
      '--cors-origin <origin>',
      "let this site's pages call, * is all; may be given several times",
      several,
    )
    .option('--chat-template <file>', "a Jinja template instead of the checkpoint's")
    .option('--sessions <place>', "'memory', a folder, or redis://host:port", 'memory')
    .option('--max-batch <count>', 'sequences that are computed together (32)', integer(1))
    .option('--queue <count>', 'requests that may wait or run; more get 429 (1024)', integer(1))
    .option(
      '--prefix-cache <bytes>',
      'for beginnings that prompts share: they are computed twice, then kept (0)',
      integer(),
    )
    .option('--max-body <bytes>', 'larger requests get 413 (4194304)', integer(1))
    .option('--max-prompt-tokens <count>', 'longer prompts get 400 (32768)', integer(1))
    .option('--max-tokens <count>', 'requests for longer answers get 400 (4096)', integer(1))
    .option('--request-seconds <number>', 'answers that take longer end with 504 (300)', number)
    .option('--drain-seconds <number>', 'what is under way at the end may take so long', number, 30)
    .option('--no-playground', 'serve the API only')
    .option('--json', 'say where it is as JSON: url, models')
    .action(run)
  return addExamples(command, {
    'The default model, and the playground at http://127.0.0.1:8000/:': 'node-mamba serve',
    'Two models, for the whole network, with keys:':
      'node-mamba serve -m small=./mamba-130m -m large=./mamba-2.8b --host 0.0.0.0 --api-key-file keys.txt',
    'Sessions that outlive the server:': 'node-mamba serve --sessions ./sessions',
    'Ask it:':
      "curl http://127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\\n" +
      '    -d \'{"model": "default", "prompt": "The ship", "stream": true}\'',
  })
}

async function run(options: ServeCommandOptions): Promise<void> {
  const apiKeys = await readKeys(options.apiKeyFile)
  // What can be checked is, before models are loaded.
  const sources = readModels(options.model)
  const limits = limitsOf(options)
  readLimits(limits)
  readDrainSeconds(options.drainSeconds)
  const template =
    options.chatTemplate === undefined ? undefined : await ChatTemplate.from(await read(options.chatTemplate))
  const sessions = openSessions(options.sessions)
  const models: Record<string, Mamba> = {}
  try {
    for (const [name, source] of sources) models[name] = await load(source, options)
    const server = await serve({
      models,
      host: options.host,
      port: options.port,
      drainSeconds: options.drainSeconds,
      limits,
      sessions,
      ...(apiKeys && { apiKeys }),
      ...(options.allowHost && { hosts: [...loopbackHosts, ...options.allowHost] }),
      ...(options.corsOrigin && { corsOrigins: options.corsOrigin }),
      ...(template && { chatTemplates: Object.fromEntries(sources.map(([name]) => [name, template])) }),
      ...(options.playground && existsSync(playground) && { playground }),
    })
    const names = sources.map(([name]) => name)
    if (options.json) await printJson({ url: server.url, models: names })
    else await print(`Serving ${names.join(', ')} at ${server.url} (Ctrl-C ends it)\n`)
    if (!apiKeys && !['127.0.0.1', '::1', 'localhost'].includes(options.host)) {
      process.stderr.write('No keys are asked for, and other machines can call: see --api-key-file.\n')
    }
    if (!interrupted.aborted) {
      await new Promise((resolve) => interrupted.addEventListener('abort', resolve, { once: true }))
    }
    await server.close()
  } finally {
    await Promise.all(Object.values(models).map((model) => model.dispose()))
  }
}

/** Where the build puts the playground: beside lib/ in dist/. */
const playground = fileURLToPath(
  new URL(extname(import.meta.url) === '.ts' ? '../../dist/playground' : '../../playground', import.meta.url),
)

async function load(source: string, { device, dtype, threads, tokenizer, ...options }: ServeCommandOptions) {
  const progress = new Progress('loading')
  return Mamba.load(source, {
    device,
    dtype,
    threads,
    tokenizer,
    maxBatch: options.maxBatch,
    queueLimit: options.queue,
    ...(options.prefixCache !== undefined && { prefixCache: { bytes: options.prefixCache } }),
    signal: interrupted,
    onProgress: ({ loadedBytes, totalBytes }) =>
      progress.update(loadedBytes / totalBytes, `of ${bytes(totalBytes)}`),
  }).finally(() => progress.done())
}

/** `name=source`, or a source that is named by its last part. */
function readModels(given: string[] = ['default']): [name: string, source: string][] {
  const models = given.map((text): [string, string] => {
    const named = /^([^=/\\]+)=(.+)$/.exec(text)
    const [name, source]: [string, string] = named ? [named[1]!, named[2]!] : [basename(text), text]
    checkModelName(name)
    return [name, source]
  })
  const twice = models.find(([name], i) => models.findIndex(([other]) => other === name) < i)
  if (!twice) return models
  throw new MambaError(
    'OPTION_INVALID',
    `two models are called '${twice[0]}', expected different names: name=source`,
  )
}

/** The keys of the file, or those of the environment. An empty list would let everybody in, so it is refused. */
async function readKeys(file: string | undefined): Promise<string[] | undefined> {
  const environment = process.env.NODE_MAMBA_API_KEYS
  if (file === undefined && environment === undefined) return undefined
  const given =
    file === undefined
      ? environment!.split(',')
      : (await read(file)).split('\n').filter((line) => !line.startsWith('#'))
  const keys = given.map((key) => key.trim()).filter((key) => key !== '')
  if (keys.length > 0 && keys.every((key) => /^\S+$/.test(key))) return keys
  const place = file === undefined ? 'NODE_MAMBA_API_KEYS' : file
  throw new MambaError(
    'OPTION_INVALID',
    `${place} holds no usable keys, expected one or more, without spaces`,
  )
}

function openSessions(place: string): SessionStore {
  if (place === 'memory') return new MemorySessions()
  return /^rediss?:/.test(place) ? new RedisSessions(place) : new DiskSessions(place)
}

function limitsOf(options: ServeCommandOptions): Partial<Limits> {
  const limits = {
    bodyBytes: options.maxBody,
    promptTokens: options.maxPromptTokens,
    completionTokens: options.maxTokens,
    requestSeconds: options.requestSeconds,
  }
  return Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined))
}

async function read(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    throw fileError(error, file)
  }
}
