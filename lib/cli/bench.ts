import { Command } from 'commander'
import { diagnose } from '../diagnose.js'
import type { Mamba } from '../model.js'
import { addExamples, addModelOptions, integer, withModel, type ModelOptions } from './arguments.js'
import { interrupted } from './interrupt.js'
import { Progress } from './progress.js'
import { grouped, print, printJson, table } from './terminal.js'

interface BenchOptions extends ModelOptions {
  prompt: number
  tokens: number
  batch: number
  rounds: number
  json?: boolean
}

/** Tokens per second over all rounds. */
interface Rate {
  median: number
  min: number
  max: number
}

/** Tokens of each text that is embedded. */
const embedTokens = 64

/** `node-mamba bench`. */
export function benchCommand(): Command {
  const command = new Command('bench')
    .summary('measures tokens per second on this machine')
    .description(
      'Measures tokens per second on this machine: reading a prompt, writing one text and several together, and ' +
        'embedding. Each is done once to warm up; the median of the rounds counts. Close what else is running.',
    )
  addModelOptions(command)
    .option('--prompt <count>', 'tokens of the prompt', integer(1), 512)
    .option('--tokens <count>', 'tokens that are generated', integer(2), 64)
    .option('--batch <count>', 'texts that are generated or embedded together', integer(1), 32)
    .option('--rounds <count>', 'how often each is measured', integer(1), 5)
    .option('--json', 'one JSON object: the machine, the model, and of each figure median, min and max')
    .action(bench)
  return addExamples(command, {
    'What quantizing gains:':
      'node-mamba bench -m ./mamba-130m\n  node-mamba bench -m ./mamba-130m --dtype q8_0',
  })
}

async function bench(options: BenchOptions): Promise<void> {
  await withModel(options, async (model) => {
    const rates = await measure(model, options)
    const { version, node, simd, processors } = diagnose()
    const { device, dtype, threads, parameters } = model
    const machine = { version, node, simd, processors }
    const about = { source: options.model, device, dtype, threads, parameters }
    const { prompt, tokens, batch, rounds } = options
    if (options.json) {
      const settings = { prompt, tokens, batch, embedTokens, rounds }
      return printJson({ machine, model: about, settings, tokensPerSecond: rates })
    }
    const row = (name: string, { median, min, max }: Rate) =>
      [
        name,
        `${grouped(Math.round(median)).padStart(9)}  (${grouped(Math.round(min))} to ${grouped(Math.round(max))})`,
      ] as const
    const title = `${options.model}, ${grouped(parameters)} parameters, ${dtype} on ${device}, ${threads} threads, ${simd}`
    const rows = [
      row(`prefill of ${prompt} tokens`, rates.prefill),
      row('decode, 1 text', rates.decode),
      row(`decode, ${batch} texts`, rates.decodeBatch),
      row(`embed, ${batch} texts of ${embedTokens} tokens`, rates.embed),
    ]
    await print(`${title}\ntokens/s, the median of ${rounds} (least to most)\n\n${table(rows)}\n`)
  })
}

async function measure(model: Mamba, { prompt, tokens, batch, rounds }: BenchOptions) {
  /** Ids that differ from text to text, since nothing of one may be reused for another. */
  const ids = (length: number, text: number) =>
    Uint32Array.from({ length }, (_, i) => (i * 7919 + text * 104_729) % model.config.vocab_size)
  const options = { ignoreEos: true, signal: interrupted }
  let text = 0
  const figures = {
    prefill: async () => {
      const { usage } = await model.complete(ids(prompt, text++), { ...options, maxTokens: 1 })
      return usage.promptTokens / usage.prefillSeconds
    },
    decode: async () => {
      const { usage } = await model.complete(ids(1, text++), { ...options, maxTokens: tokens })
      return (usage.completionTokens - 1) / usage.decodeSeconds
    },
    decodeBatch: async () => {
      const prompts = Array.from({ length: batch }, () => ids(1, text++))
      const seconds = await timed(() => model.completeBatch(prompts, { ...options, maxTokens: tokens }))
      return (batch * tokens) / seconds
    },
    embed: async () => {
      const texts = Array.from({ length: batch }, () => ids(embedTokens, text++))
      return (batch * embedTokens) / (await timed(() => model.embed(texts, { signal: interrupted })))
    },
  }
  const progress = new Progress('measuring')
  const names = Object.keys(figures) as (keyof typeof figures)[]
  const rates = {} as Record<keyof typeof figures, Rate>
  try {
    for (const [i, name] of names.entries()) {
      await figures[name]() // to warm up
      const measured: number[] = []
      for (let round = 0; round < rounds; round++) {
        progress.update((i + round / rounds) / names.length, name)
        measured.push(await figures[name]())
      }
      const sorted = measured.toSorted((a, b) => a - b)
      rates[name] = { median: sorted[rounds >> 1]!, min: sorted[0]!, max: sorted.at(-1)! }
    }
  } finally {
    progress.done()
  }
  return rates
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await work()
  return (performance.now() - start) / 1000
}
