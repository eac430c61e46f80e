import { statSync } from 'node:fs'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { convert } from '../convert.js'
import type { DType } from '../model.js'
import { addExamples, dtypes, integer } from './arguments.js'
import { interrupted } from './interrupt.js'
import { Progress } from './progress.js'
import { bytes, print, printJson } from './terminal.js'

interface ConvertOptions {
  dtype?: DType
  threads?: number
  json?: boolean
}

/** `node-mamba convert`. */
export function convertCommand(): Command {
  const command = new Command('convert')
    .summary('writes a checkpoint in another type or format')
    .description(
      'Writes a checkpoint into a folder as config.json, model.safetensors and tokenizer.json, each whole or not ' +
        'at all. Reads safetensors, sharded ones too, and pytorch_model.bin, in the official and the Hugging Face ' +
        'format. q8_0 takes 8.5 bits a weight, q4_k 4.5.',
    )
    .argument('<source>', "'default', './folder' or './file'")
    .argument('<folder>', 'where to; made if it is not there')
    .addOption(new Option('--dtype <type>', "the matrices' type (as in the checkpoint)").choices(dtypes))
    .option('--threads <count>', 'threads to convert on', integer(1))
    .option('--json', 'one JSON object: folder, file, bytes')
    .action(run)
  return addExamples(command, {
    'A quarter of the size of f16:': 'node-mamba convert --dtype q4_k ./mamba-2.8b ./mamba-2.8b-q4',
  })
}

async function run(source: string, folder: string, { dtype, threads, json }: ConvertOptions): Promise<void> {
  const progress = new Progress('converting')
  await convert(source, folder, {
    dtype,
    threads,
    signal: interrupted,
    onProgress: ({ writtenBytes, totalBytes }) =>
      progress.update(writtenBytes / totalBytes, `of ${bytes(totalBytes)}`),
  }).finally(() => progress.done())
  const file = join(folder, 'model.safetensors')
  const { size } = statSync(file)
  await (json ? printJson({ folder, file, bytes: size }) : print(`${file}: ${bytes(size)}\n`))
}
