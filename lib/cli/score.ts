import { Command } from 'commander'
import { addExamples, addModelOptions, withModel, type ModelOptions } from './arguments.js'
import { textOf } from './input.js'
import { interrupted } from './interrupt.js'
import { grouped, print, printJson, table } from './terminal.js'

/** `node-mamba score`. */
export function scoreCommand(): Command {
  const command = new Command('score')
    .summary('says how likely a model finds a text')
    .description('Says how likely a model finds a text: its perplexity, and with --json each token of it.')
    .argument('[text]', 'the text, at least two tokens; from standard input where it is missing or -')
  addModelOptions(command)
    .option('--json', 'one JSON object: perplexity, meanNll, and of each token id, text and logprob')
    .action(score)
  return addExamples(command, {
    'A likely and an unlikely sentence:':
      "node-mamba score 'She looked out of the window.'\n  node-mamba score 'Window the she of looked out.'",
    'A file, on a model of your own:': 'node-mamba score -m ./mamba-130m < chapter.txt',
  })
}

async function score(
  argument: string | undefined,
  options: ModelOptions & { json?: boolean },
): Promise<void> {
  const text = await textOf(argument, 'text')
  await withModel(options, async (model) => {
    const { tokens, logprobs, meanNll, perplexity } = await model.score(text, { signal: interrupted })
    if (!options.json) {
      const rows = [
        ['perplexity', perplexity.toFixed(2)],
        ['nats a token', meanNll.toFixed(4)],
        ['tokens', grouped(tokens.length)],
      ] as const
      return print(`${table(rows)}\n`)
    }
    // The first token has nothing before it, so no probability.
    const each = Array.from(tokens, (id, i) => ({
      id,
      text: model.tokenizer.decode([id], { skipSpecialTokens: false }),
      logprob: i === 0 ? null : logprobs[i - 1]!,
    }))
    await printJson({ perplexity, meanNll, tokens: each })
  })
}
