import { InvalidArgumentError, Option, type Command } from 'commander'
import type { GenerateOptions } from '../generate.js'
import { Mamba, type DType, type LoadOptions } from '../model.js'
import { interrupted } from './interrupt.js'
import { Progress } from './progress.js'
import { bytes } from './terminal.js'

/** A whole number of at least `min`. */
export function integer(min = 0): (value: string) => number {
  return (value) => {
    const number = Number(value)
    if (/^\d+$/.test(value) && number >= min && number <= Number.MAX_SAFE_INTEGER) return number
    throw new InvalidArgumentError(`Expected a whole number from ${min}.`)
  }
}

/** A number. */
export function number(value: string): number {
  if (value.trim() !== '' && Number.isFinite(Number(value))) return Number(value)
  throw new InvalidArgumentError('Expected a number.')
}

/** Collects an option that may be given several times. */
export function several(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value]
}

export const dtypes: readonly DType[] = ['f32', 'bf16', 'f16', 'q8_0', 'q4_k']

/** What every command that runs a model takes. */
export interface ModelOptions {
  model: string
  device?: LoadOptions['device']
  dtype?: DType
  threads?: number
  tokenizer?: string
}

export function addModelOptions(command: Command): Command {
  command.option(
    '-m, --model <source>',
    "'default', './folder' or './file': as Mamba.load takes it",
    'default',
  )
  return addLoadOptions(command)
}

/** How a model is loaded, whichever it is. */
export function addLoadOptions(command: Command): Command {
  return command
    .addOption(new Option('--device <name>', 'where it runs').choices(['auto', 'cpu', 'cuda']))
    .addOption(new Option('--dtype <type>', 'type its matrices are kept in').choices(dtypes))
    .option('--threads <count>', 'threads to compute on', integer(1))
    .option('--tokenizer <file>', "a tokenizer.json instead of the checkpoint's")
}

/** Loads the model that the options name, calls `use`, and frees it, whatever happens. */
export async function withModel<T>(
  { model: source, device, dtype, threads, tokenizer }: ModelOptions,
  use: (model: Mamba) => Promise<T>,
): Promise<T> {
  const progress = new Progress('loading')
  const model = await Mamba.load(source, {
    device,
    dtype,
    threads,
    tokenizer,
    signal: interrupted,
    onProgress: ({ loadedBytes, totalBytes }) =>
      progress.update(loadedBytes / totalBytes, `of ${bytes(totalBytes)}`),
  }).finally(() => progress.done())
  try {
    return await use(model)
  } finally {
    await model.dispose()
  }
}

/** What every command that generates text takes. */
export interface SamplingOptions {
  maxTokens?: number
  temperature?: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  frequencyPenalty?: number
  presencePenalty?: number
  seed?: number
  stop?: string[]
}

export function addSamplingOptions(command: Command): Command {
  return command
    .option('-n, --max-tokens <count>', 'at most so many new tokens (256)', integer(1))
    .option('-t, --temperature <number>', '0 is greedy, 1 is as the model has it (0)', number)
    .option('--top-k <count>', 'keep the so many likeliest tokens, 0 is off (0)', integer())
    .option('--top-p <share>', 'keep the likeliest that sum to this probability, 1 is off (1)', number)
    .option('--min-p <share>', 'keep those at least this likely relative to the likeliest (0)', number)
    .option('--repetition-penalty <factor>', 'above 1: less of what was said lately (1)', number)
    .option('--frequency-penalty <number>', 'subtracted for each time a token was said lately (0)', number)
    .option('--presence-penalty <number>', 'subtracted from tokens said lately (0)', number)
    .option('--seed <number>', 'the same seed gives the same text (a new one each time)', integer())
    .option('--stop <text>', 'end before this text; may be given several times', several)
}

/** The sampling options as the library takes them. */
export function generateOptions(options: SamplingOptions): GenerateOptions {
  const { maxTokens, temperature, topK, topP, minP, seed, stop } = options
  const { repetitionPenalty, frequencyPenalty, presencePenalty } = options
  const penalties = { repetitionPenalty, frequencyPenalty, presencePenalty }
  return { maxTokens, temperature, topK, topP, minP, seed, stop, ...penalties, signal: interrupted }
}

/** The examples at the end of a command's help: what each one does, and the command line. */
export function addExamples(command: Command, examples: Record<string, string>): Command {
  const lines = Object.entries(examples).map(([what, line]) => `  # ${what}\n  ${line}`)
  return command.addHelpText('after', `\nExamples:\n${lines.join('\n\n')}`)
}
