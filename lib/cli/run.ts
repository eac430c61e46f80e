import { existsSync } from 'node:fs'
import { dirname } from 'node:path'
import { Command } from 'commander'
import { MambaError } from '../errors.js'
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
import { textOf } from './input.js'
import { interrupted } from './interrupt.js'
import { print, printJson } from './terminal.js'

interface RunOptions extends ModelOptions, SamplingOptions {
  session?: string
  json?: boolean
}

/** `node-mamba run`. */
export function runCommand(): Command {
  const command = new Command('run')
    .summary('continues a text')
    .description('Continues a text, and prints what follows as it comes.')
    .argument('[prompt]', 'the text; from standard input where it is missing or -')
  addModelOptions(command)
  addSamplingOptions(command)
    .option('--session <file>', 'go on from this session if it exists, and save it there at the end')
    .option('--json', 'one JSON object at the end: text, tokens, finishReason, usage, session')
    .action(run)
  return addExamples(command, {
    'The default model goes on:': "node-mamba run 'It was a dark and stormy night'",
    'A model of your own, drawn with a seed:':
      "node-mamba run -m ./mamba-130m -t 0.8 --top-p 0.95 --seed 7 'The ship'",
    'A story over several calls; each one computes its new tokens only:':
      "node-mamba run --session story.session 'Once upon a time'\n  node-mamba run --session story.session ' Then'",
    'In a pipe:': 'cat chapter.txt | node-mamba run -n 100 --json | jq -r .text',
  })
}

async function run(prompt: string | undefined, options: RunOptions): Promise<void> {
  // With a session, no prompt at all means: go on.
  const text =
    prompt === undefined && options.session && process.stdin.isTTY ? '' : await textOf(prompt, 'prompt')
  await withModel(options, async (model) => {
    const { session: file } = options
    const session = file === undefined ? undefined : await openSession(model, file)
    let shown = false
    try {
      if (session && text !== '') await session.append(text, { signal: interrupted })
      const how = generateOptions(options)
      const generation = session ? session.generate(how) : model.generate(text, how)
      for await (const step of generation) {
        if (options.json) continue
        shown ||= step.text !== ''
        await print(step.text)
      }
      if (!options.json) return
      const { tokens, ...completion } = await generation.result
      const saved = session && { file, tokens: session.tokens, bytes: session.byteLength }
      await printJson({ ...completion, tokens: [...tokens], logprobs: undefined, session: saved })
    } finally {
      if (shown) await print('\n')
      await session?.save(file!)
    }
  })
}

/** The session in a file, or an empty one where there is no such file yet. */
export async function openSession(model: Mamba, file: string): Promise<Session> {
  if (existsSync(file)) return model.restore(file)
  if (existsSync(dirname(file))) return model.session()
  throw new MambaError('FILE_NOT_FOUND', `there is no folder ${dirname(file)} to keep the session ${file} in`)
}
