import { MambaError } from './errors.js'
import { invalid } from './options.js'
import { filePath, resolveSource } from './source.js'
import {
  anyObject,
  either,
  flag,
  integer,
  list,
  number,
  object,
  oneOf,
  text,
  type Field,
} from './train-schema.js'
import { resolve } from 'node:path'
import type { AdapterOptions, DataFiles, Objective, TrainOptions } from './train.js'

/** What training data are stored as. */
export type DataFormat = 'text' | 'jsonl' | 'fasta' | 'tokens16' | 'tokens32' | 'wav'
/** What is learned. */
export type ObjectiveName = 'causal-lm' | 'contrastive' | 'distill' | 'classify'
/** A matrix of each block. */
export type AdapterTarget = 'in_proj' | 'x_proj' | 'dt_proj' | 'out_proj'

const paths = (description: string): Field =>
  either({ string: text(description), array: list(text(''), description) }, 'a path or an array of paths')

const pooling = oneOf(
  ['mean', 'last'],
  "How a text's vector is made of its tokens': their mean, or the last one. Default: mean.",
)

/**
 * Everything that a run may be told, with what it means: the one source of what `train` accepts, of
 * `trainSchema` and of its table in docs/training.md.
 */
const fields: Record<string, Field> = {
  $schema: text('Where the schema is, for editors.'),
  out: text("The run's folder; made if it is not there. A path in a file is relative to the file."),
  resume: flag('Go on where the run in that folder was, if there is one. Default: false.'),
  model: text("A model to begin from, as Mamba.load takes it: 'default', './folder'."),
  config: anyObject(
    "A new model's shape, as the official config.json: d_model, n_layer, …; vocab_size may be left to the tokenizer.",
  ),
  tokenizer: either(
    {
      string: text("A tokenizer.json, or 'characters' or 'bytes': one made so. Default: the model's."),
      object: object(
        {
          bpe: integer(
            257,
            'Byte-level byte-pair encoding with so many tokens, made from the data.',
            2 ** 24,
          ),
        },
        { required: ['bpe'] },
      ),
    },
    "a path, 'characters', 'bytes' or { bpe: tokens }",
  ),
  data: either(
    {
      string: text('A file.'),
      array: list(text('A file.'), 'Files.'),
      object: object(
        {
          files: paths('Files, in this order.'),
          format: oneOf(
            ['text', 'jsonl', 'fasta', 'tokens16', 'tokens32', 'wav'],
            "What they are. Default: by each file's name.",
          ),
          field: text("Where JSON lines have their text or token ids. Default: 'text'."),
          keepCase: flag('FASTA: tell acgt from ACGT. Default: false, all letters are made upper case.'),
          splitAtN: flag('FASTA: end a sequence at N. Default: false, N is a letter like others.'),
          reverseComplement: flag('FASTA: give the reverse complement after each sequence. Default: false.'),
        },
        { required: ['files'] },
      ),
    },
    'a path, paths, { files, … } or, from TypeScript, an iterable',
  ),
  objective: either(
    {
      string: oneOf(
        ['causal-lm', 'contrastive', 'distill', 'classify'],
        'What is learned. Default: causal-lm.',
      ),
      object: object(
        {
          kind: oneOf(['causal-lm', 'contrastive', 'distill', 'classify'], 'What is learned.'),
          pooling,
          temperature: number(0, 'contrastive: similarities are divided by it. Default: 0.05.'),
          loss: oneOf(['cosine', 'mse'], 'distill: the distance that is made small. Default: cosine.'),
        },
        { required: ['kind'] },
      ),
    },
    'the name of an objective or { kind, … }',
  ),
  batch: object({
    size: integer(1, 'Rows of a batch, or examples. Default: 8.', 2 ** 20),
    length: integer(1, 'Tokens of a row; texts of examples are cut after so many. Default: 512.', 2 ** 24),
    accumulate: integer(1, 'Batches that are computed one after the other for a step. Default: 1.', 2 ** 20),
    order: oneOf(
      ['documents', 'windows', 'carried'],
      'documents: all of them, packed, in a drawn order; windows: rows from drawn places, as the official models were trained; carried: rows go on with their states from batch to batch. Default: documents.',
    ),
    tokens: integer(
      1,
      'Examples: tokens that are computed together; a batch may be far larger. Default: size · length, at most 8192.',
      2 ** 24,
    ),
  }),
  steps: integer(1, 'Steps of the run.'),
  optimizer: object({
    lr: number(0, 'The greatest learning rate. Default: 1e-3.'),
    betas: list(number(0, '', 1), 'β₁ and β₂ of AdamW. Default: [0.9, 0.95].', 2),
    eps: number(0, "Added to AdamW's root. Default: 1e-8."),
    weightDecay: number(0, 'Of tensors of two or more dimensions but A_log. Default: 0.1.'),
    clip: number(0, 'The norm that gradients are scaled down to; 0: never. Default: 1.'),
    zLoss: number(0, 'Weight of (log Σ exp logits)² in the loss. Default: 0.'),
  }),
  schedule: object({
    warmup: integer(0, 'Steps until the full learning rate. Default: 0.'),
    decay: oneOf(['cosine', 'linear', 'constant'], 'How it falls after that. Default: cosine.'),
    minLr: number(0, 'What it falls to. Default: 1e-5.'),
  }),
  validation: object({
    fraction: number(0, 'Part of the data that is held out. Default: 0.', 0.999),
    every: integer(0, 'Steps from one look at it to the next; 0: only at the end. Default: 0.'),
    batches: integer(1, 'Batches that are looked at. Default: 16.'),
  }),
  precision: oneOf(['f32', 'bf16'], 'Type of activations and products; bf16 on a GPU only. Default: f32.'),
  adapter: either(
    {
      string: oneOf(['lora', 'state'], 'Train low-rank adapters, or the initial state, and not the model.'),
      object: object(
        {
          kind: oneOf(['lora', 'state'], 'Low-rank adapters, or the initial state.'),
          rank: integer(1, 'lora: inner dimension. Default: 8.', 2 ** 16),
          alpha: number(0, 'lora: scale, divided by the rank. Default: 16.'),
          targets: list(
            oneOf(['in_proj', 'x_proj', 'dt_proj', 'out_proj'], ''),
            'lora: the matrices. Default: in_proj and x_proj.',
          ),
        },
        { required: ['kind'] },
      ),
    },
    "'lora', 'state' or { kind, … }",
  ),
  checkpoint: object({
    every: integer(0, 'Steps from one checkpoint to the next; 0: only at the end. Default: 500.'),
    keep: integer(1, 'How many are kept. Default: 2.'),
  }),
  recompute: flag('Compute activations again in the backward instead of keeping them. Default: false.'),
  seed: integer(0, 'Draws parameters, places in the data, the held-out part. Default: 0.'),
  device: oneOf(['auto', 'cpu', 'cuda'], 'Where it runs. Default: auto.'),
  threads: integer(1, 'Threads to compute on. Default: one for each processor.', 1024),
}

const configuration = object(fields, { required: ['out', 'data', 'steps'] })

/** JSON Schema (draft 2020-12) of a configuration file of `node-mamba train`. */
export const trainSchema: object = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  title: 'A training run of node-mamba',
  ...configuration.schema,
}

/** What `configuration` lets through. */
type Configuration = Omit<TrainOptions, 'out' | 'model' | 'tokenizer' | 'data'> & {
  $schema?: string
  out: string
  model?: string
  tokenizer?: string | { bpe: number }
  data: string | readonly string[] | DataFiles
}

/** Where paths are relative to, and what stands for data that are no files. */
interface Place {
  folder?: string
  dataFiles?: (out: string) => string[]
}

/**
 * Checks a configuration and says it as the core takes it (crates/mamba/src/train/run/config.rs).
 *
 * @throws {@link MambaError} `OPTION_INVALID`, `INVALID_ARGUMENT`, `MODEL_NOT_INSTALLED`
 */
export function toCoreConfig(
  value: unknown,
  { folder = '.', dataFiles }: Place = {},
): Record<string, unknown> {
  const read = configuration.read(value, '') as Configuration
  const path = (file: string) => (file.startsWith('file:') ? filePath(file) : resolve(folder, file))
  const { $schema: _, out, model, tokenizer, data, objective, adapter, ...rest } = read
  const { size = 8, length = 512 } = read.batch ?? {}
  if (size * length > 2 ** 31) throw invalid('batch.size', size, 'with batch.length at most 2^31 tokens')
  return {
    ...rest,
    out: path(out),
    ...(model !== undefined && { model: isPath(model) ? path(model) : resolveSource(model) }),
    ...(tokenizer !== undefined && { tokenizer: toTokenizer(tokenizer, path) }),
    data: toSources(data, path, dataFiles?.(path(out))),
    objective: toObjective(objective ?? 'causal-lm'),
    ...(adapter !== undefined && { adapter: toAdapter(adapter) }),
  }
}

const isPath = (source: string) => /^(\.{0,2}[\\/]|[A-Za-z]:[\\/]|file:)/.test(source)

function toTokenizer(tokenizer: string | { bpe: number }, path: (file: string) => string): object {
  if (typeof tokenizer === 'object') return { kind: 'bpe', vocabSize: tokenizer.bpe }
  if (tokenizer === 'characters' || tokenizer === 'bytes') return { kind: tokenizer }
  return { kind: 'file', path: path(tokenizer) }
}

function toSources(
  data: Configuration['data'],
  path: (file: string) => string,
  instead: string[] | undefined,
): object {
  const { files, format, field, keepCase, splitAtN, reverseComplement }: DataFiles =
    typeof data === 'object' && 'files' in data ? data : { files: data }
  return {
    files: instead ?? [files].flat().map(path),
    format,
    field,
    fasta: {
      keepCase: keepCase ?? false,
      splitAtN: splitAtN ?? false,
      reverseComplement: reverseComplement ?? false,
    },
  }
}

function toObjective(objective: ObjectiveName | Objective): object {
  const { kind, pooling, temperature, loss }: Objective =
    typeof objective === 'string' ? { kind: objective } : objective
  const only = (name: string, value: unknown, kinds: ObjectiveName[]) => {
    if (value === undefined || kinds.includes(kind)) return
    const expected = kinds.map((one) => `'${one}'`).join(' or ')
    throw invalid(`objective.${name}`, value, `nothing: it is ${expected}'s, and this is '${kind}'`)
  }
  only('pooling', pooling, ['contrastive', 'distill', 'classify'])
  only('temperature', temperature, ['contrastive'])
  only('loss', loss, ['distill'])
  return {
    kind,
    ...(kind !== 'causal-lm' && { pooling: pooling ?? 'mean' }),
    ...(kind === 'contrastive' && { temperature: temperature ?? 0.05 }),
    ...(kind === 'distill' && { loss: loss ?? 'cosine' }),
  }
}

function toAdapter(adapter: AdapterOptions['kind'] | AdapterOptions): object {
  const { kind, rank, alpha, targets }: AdapterOptions =
    typeof adapter === 'string' ? { kind: adapter } : adapter
  if (kind === 'state') {
    const stray = Object.entries({ rank, alpha, targets }).find(([, value]) => value !== undefined)
    if (stray) throw invalid(`adapter.${stray[0]}`, stray[1], "nothing: it is 'lora's, and this is 'state'")
    return { kind }
  }
  return {
    kind,
    rank: rank ?? 8,
    alpha: alpha ?? 16,
    // Those that transformers and PEFT take as well (docs/training.md).
    targets: targets ?? ['in_proj', 'x_proj'],
  }
}

/** A configuration from the text of a file. */
export function parseConfig(json: string, file: string): unknown {
  try {
    return JSON.parse(json)
  } catch (cause) {
    throw new MambaError('OPTION_INVALID', `${file} is not JSON: ${(cause as Error).message}`, { cause })
  }
}
