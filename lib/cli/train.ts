import { readFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Command } from 'commander'
import { MambaError } from '../errors.js'
import { runConfig, type TrainEvent, type TrainProgress } from '../train.js'
import { parseConfig, toCoreConfig, trainSchema } from '../train-config.js'
import { addExamples } from './arguments.js'
import { fileError } from './input.js'
import { interrupted } from './interrupt.js'
import { Progress } from './progress.js'
import { bytes, grouped, print, printJson, table } from './terminal.js'

interface CommandOptions {
  resume?: boolean
  json?: boolean
  schema?: boolean
}

/** `node-mamba train`. */
export function trainCommand(): Command {
  const command = new Command('train')
    .summary('trains or fine-tunes a model as a configuration file says')
    .description(
      'Trains a model, or an adapter for one, as a JSON file says; docs/training.md explains every field. The run ' +
        'has a folder of its own with its checkpoints, its progress (a line a step), its loss curve and its result. ' +
        'Ctrl-C saves it; --resume goes on from there, or from the last checkpoint, with the same bits as an ' +
        'unbroken run.',
    )
    .argument('[config]', 'the JSON file; paths in it are relative to it')
    .option('--resume', 'go on with the run in the folder, if there is one')
    .option('--json', 'a JSON line for each step on standard output, and at last one with the result')
    .option('--schema', 'print the JSON Schema of the configuration')
    .action(run)
  return addExamples(command, {
    'A completing editor (put "$schema": "./train.schema.json" into the file):':
      'node-mamba train --schema > train.schema.json',
    'Go on after Ctrl-C or a crash:': 'node-mamba train config.json --resume',
  })
}

async function run(file: string | undefined, { resume, json, schema }: CommandOptions): Promise<void> {
  if (schema) return print(`${JSON.stringify(trainSchema, null, 2)}\n`)
  if (file === undefined)
    throw new MambaError('OPTION_INVALID', 'the configuration is missing, expected a JSON file')
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    throw fileError(error, file)
  })
  const config = toCoreConfig(parseConfig(text, file), { folder: dirname(resolve(file)) })
  if (resume) config.resume = true
  const bar = new Progress('training')
  const run = runConfig(config, interrupted, (event) => tell(event, json))
  try {
    for await (const progress of run) {
      bar.update(progress.step / progress.steps, detail(progress))
      if (json) await printJson(progress)
    }
  } finally {
    bar.done()
  }
  const { last, ...files } = await run.result
  if (json) return printJson({ last, ...files })
  const loss = (value: number | null | undefined) => value?.toFixed(4)
  await print(
    `${table([
      ['steps', grouped(last.steps)],
      ['loss', loss(last.loss)],
      ['held out', loss(last.validationLoss)],
      ['right labels', last.validationAccuracy?.toFixed(4)],
      ['model', files.model],
      ['for Python', files.huggingFace],
      ['adapter', files.adapter],
      ['classifier', files.classifier],
      ['curve', pathToFileURL(files.curve).href],
    ])}\n`,
  )
}

function tell(event: TrainEvent, quiet: boolean | undefined): void {
  if (quiet || event.type !== 'started') return
  const { step, steps, parameters, trained, device } = event
  const from = step > 0 ? `from step ${grouped(step)} on, ` : ''
  process.stderr.write(
    `${grouped(steps)} steps ${from}on ${device}: ${grouped(trained)} values are trained, the model has ${grouped(parameters)}\n`,
  )
}

function detail({ step, steps, loss, tokensPerSecond, memoryBytes }: TrainProgress): string {
  const memory = memoryBytes === null ? '' : `, ${bytes(memoryBytes)}`
  return `${grouped(step)} of ${grouped(steps)}, loss ${loss?.toFixed(3) ?? '–'}, ${grouped(Math.round(tokensPerSecond))} tokens/s${memory}`
}
