import { mkdir, open, readdir, rename, access } from 'node:fs/promises'
import { join } from 'node:path'
import { call, callWithProgress, untilAborted, type Abortable } from './call.js'
import { bindingFor } from './cuda.js'
import { binding } from './binding.js'
import { MambaError } from './errors.js'
import type { DType, MambaConfig } from './model.js'
import type { NativeCallback, NativeTrainEvent } from './native.js'
import { Options, shown } from './options.js'
import { resolveSource, toPath } from './source.js'
import { toCoreConfig, type AdapterTarget, type DataFormat, type ObjectiveName } from './train-config.js'

/** A text, token ids, or an example: an object as a line of JSON lines would have it. */
export type TrainExample = string | readonly number[] | Uint32Array | Record<string, unknown>

/** Files to train on. */
export interface DataFiles {
  /** In this order. */
  files: string | readonly string[]
  /** What they are. Default: by each file's name. */
  format?: DataFormat
  /** Where JSON lines have their text or token ids. Default: `text`. */
  field?: string
  /** FASTA: tell `acgt` from `ACGT`. Default: false, all letters are made upper case. */
  keepCase?: boolean
  /** FASTA: end a sequence at N. Default: false, N is a letter like others. */
  splitAtN?: boolean
  /** FASTA: give the reverse complement after each sequence. Default: false. */
  reverseComplement?: boolean
}

/** An objective with its settings. */
export interface Objective {
  /** Which one. */
  kind: ObjectiveName
  /** How a text's vector is made of its tokens'. Default: `mean`. */
  pooling?: 'mean' | 'last'
  /** `contrastive`: similarities are divided by it. Default: 0.05. */
  temperature?: number
  /** `distill`: the distance that is made small. Default: `cosine`. */
  loss?: 'cosine' | 'mse'
}

/** An adapter with its settings. */
export interface AdapterOptions {
  /** Low-rank matrices beside the model's, or the state that every text begins from. */
  kind: 'lora' | 'state'
  /** `lora`: inner dimension. Default: 8. */
  rank?: number
  /** `lora`: scale, divided by the rank. Default: 16. */
  alpha?: number
  /** `lora`: which matrices. Default: `in_proj` and `x_proj`, the two that `transformers` with PEFT takes as well. */
  targets?: readonly AdapterTarget[]
}

/** A training run: see docs/training.md for what each setting does, and which to choose. */
export interface TrainOptions extends Abortable {
  /** The run's folder; made if it is not there. */
  out: string | URL
  /** Go on where the run in that folder was, if there is one. Default: false. */
  resume?: boolean
  /** A model to begin from, as `Mamba.load` takes it; or `config`. */
  model?: string | URL
  /** A new model's shape, by the names of the official config.json; `vocab_size` may be left to the tokenizer. */
  config?: Partial<Omit<MambaConfig, 'ssm_cfg'>> & { ssm_cfg?: Partial<MambaConfig['ssm_cfg']> }
  /** A tokenizer.json, or how to make one of the data. Default: the model's. */
  tokenizer?: string | URL | 'characters' | 'bytes' | { bpe: number }
  /** What to train on: files, or texts as they come (they are written into the run's folder first). */
  data: string | readonly string[] | DataFiles | AsyncIterable<TrainExample>
  /** What is learned. Default: `causal-lm`. */
  objective?: ObjectiveName | Objective
  /** How much of it at a time. */
  batch?: {
    /** Rows of a batch, or examples. Default: 8. */
    size?: number
    /** Tokens of a row; texts of examples are cut after so many. Default: 512. */
    length?: number
    /** Batches that are computed one after the other for a step. Default: 1. */
    accumulate?: number
    /**
     * `documents`: all of them, packed, in a drawn order; `windows`: rows from drawn places, as the official models
     * were trained; `carried`: rows go on with their states from batch to batch. Default: `documents`.
     */
    order?: 'documents' | 'windows' | 'carried'
    /** Examples: tokens that are computed together; a batch may be far larger. Default: size · length, at most 8192. */
    tokens?: number
  }
  /** Steps of the run. */
  steps: number
  /** AdamW. */
  optimizer?: {
    /** The greatest learning rate. Default: 1e-3. */
    lr?: number
    /** β₁ and β₂. Default: [0.9, 0.95]. */
    betas?: readonly [number, number]
    /** Added to the root. Default: 1e-8. */
    eps?: number
    /** Of tensors of two or more dimensions but A_log. Default: 0.1. */
    weightDecay?: number
    /** The norm that gradients are scaled down to; 0: never. Default: 1. */
    clip?: number
    /** Weight of (log Σ exp logits)² in the loss. Default: 0. */
    zLoss?: number
  }
  /** The learning rate over the run. */
  schedule?: {
    /** Steps until the full rate. Default: 0. */
    warmup?: number
    /** How it falls. Default: `cosine`. */
    decay?: 'cosine' | 'linear' | 'constant'
    /** What it falls to. Default: 1e-5. */
    minLr?: number
  }
  /** What is held out. */
  validation?: {
    /** Part of the data. Default: 0. */
    fraction?: number
    /** Steps from one look at it to the next; 0: only at the end. Default: 0. */
    every?: number
    /** Batches that are looked at, the same ones each time. Default: 16. */
    batches?: number
  }
  /** Type of activations and products; `bf16` on a GPU only. Default: `f32`. */
  precision?: 'f32' | 'bf16'
  /** Train this, and not the model. */
  adapter?: AdapterOptions['kind'] | AdapterOptions
  /** When the run is saved, besides at its end and when it is aborted. */
  checkpoint?: {
    /** Steps from one checkpoint to the next; 0: none in between. Default: 500. */
    every?: number
    /** How many are kept. Default: 2. */
    keep?: number
  }
  /** Compute activations again in the backward instead of keeping them: less memory, more time. Default: false. */
  recompute?: boolean
  /** Draws parameters, places in the data, the held-out part. Default: 0. */
  seed?: number
  /** Where it runs. Default: `auto`. */
  device?: 'auto' | 'cpu' | 'cuda'
  /** Threads to compute on, 1 to 1024. Default: one for each processor that the process may use. */
  threads?: number
  /** Called with what happens besides steps. */
  onEvent?: (event: TrainEvent) => void
}

/** What happens in a run besides its steps. */
export type TrainEvent =
  /** Data are being tokenized: so many tokens so far. */
  | { type: 'preparing'; tokens: number }
  /** Training begins, or goes on after `step` steps. `trained` of the model's `parameters` (and an adapter's) change. */
  | {
      type: 'started'
      step: number
      steps: number
      parameters: number
      trained: number
      stepsPerEpoch: number
      device: string
    }
  /** The run can be resumed from here. */
  | { type: 'saved'; step: number; path: string }

/** A step of a run. */
export interface TrainProgress {
  /** From 1. */
  step: number
  /** Steps of the run. */
  steps: number
  /** Epochs done. */
  epoch: number
  /** Mean loss before the step's update; null where it was not finite. */
  loss: number | null
  /** Learning rate. */
  lr: number
  /** Norm of all gradients before clipping; null where it was not finite. */
  gradNorm: number | null
  /** Whether nothing was changed, the gradients not being finite. */
  skipped: boolean
  /** Tokens that this step learned from, a second. */
  tokensPerSecond: number
  /** Bytes of the GPU's memory that training has in use; on a CPU, of the process's. Null where that is unknown. */
  memoryBytes: number | null
  /** Seconds until the last step. */
  etaSeconds: number
  /** Seconds of training so far, those before a resume included. */
  seconds: number
  /** Loss on the held-out part, where this step was followed by a look. */
  validationLoss?: number
  /** `classify`: part of the held-out texts that got the right label. */
  validationAccuracy?: number
}

/** How a run ended: paths in its folder. */
export interface TrainResult {
  /** The last step. */
  last: TrainProgress
  /** The model in the official format, which `Mamba.load` takes. Not of an adapter. */
  model?: string
  /** The same in the format of `transformers`; not of a model with LayerNorm, which that does not have. */
  huggingFace?: string
  /** The adapter, in PEFT's files. */
  adapter?: string
  /** `classify`: the head and the labels. */
  classifier?: string
  /** The loss over the run, an SVG. */
  curve: string
}

/** Steps that wait for a consumer at most; then the oldest ones are dropped. All are in progress.jsonl. */
const waiting = 10_000

/**
 * Trains a model, or a part of one.
 *
 * @example
 * const run = train({ model: 'default', data: 'letters.txt', out: './letters', steps: 200, adapter: 'lora' })
 * for await (const { step, loss } of run) console.log(step, loss)
 * const { adapter } = await run.result
 */
export function train(options: TrainOptions): TrainingRun {
  return new TrainingRun(async (stop, push) => {
    const { signal, onEvent, data, ...settings } = readOptions(options)
    const either = signal ? AbortSignal.any([signal, stop]) : stop
    const isIterable = typeof data === 'object' && data !== null && Symbol.asyncIterator in data
    const config = isIterable
      ? toCoreConfig({ ...settings, data: 'data.jsonl' }, { dataFiles: (out) => [join(out, 'data.jsonl')] })
      : toCoreConfig({ ...settings, data })
    if (isIterable) await keep(data, config.out as string, settings.resume === true, either)
    return start(config, either, push, onEvent)
  })
}

/** Runs a configuration that `toCoreConfig` gave. */
export function runConfig(
  config: Record<string, unknown>,
  signal: AbortSignal,
  onEvent: (event: TrainEvent) => void,
): TrainingRun {
  return new TrainingRun((stop, push) => start(config, AbortSignal.any([signal, stop]), push, onEvent))
}

function readOptions(options: TrainOptions): TrainOptions {
  if (typeof options !== 'object' || options === null) {
    throw new MambaError('INVALID_ARGUMENT', `the options are ${shown(options)}, expected an object`)
  }
  const { signal, onEvent } = options
  const read = new Options({ signal, onEvent }, ['signal', 'onEvent'])
  read.signal()
  read.function('onEvent')
  const paths = (['out', 'model', 'tokenizer'] as const).filter((name) => options[name] instanceof URL)
  return { ...options, ...Object.fromEntries(paths.map((name) => [name, toPath(options[name] as URL)])) }
}

/** Starts what the core does, and waits for its end. An error that `onEvent` throws ends it. */
async function start(
  config: Record<string, unknown>,
  signal: AbortSignal,
  push: (progress: TrainProgress) => void,
  onEvent: TrainOptions['onEvent'],
): Promise<TrainResult> {
  const { train: native } = await bindingFor(config.device as string | undefined)
  const last = await callWithProgress<Happening, Finished>(
    signal,
    (onNative) => native(JSON.stringify(config), onNative as NativeCallback<NativeTrainEvent>),
    (event) => event.type === 'finished',
    (event) => {
      if (event.type === 'progress') push(JSON.parse(event.json) as TrainProgress)
      else onEvent?.(event)
    },
  )
  const { json, model, huggingFace, adapter, classifier, curve } = last
  return {
    last: JSON.parse(json) as TrainProgress,
    ...(model && { model }),
    ...(huggingFace && { huggingFace }),
    ...(adapter && { adapter }),
    ...(classifier && { classifier }),
    curve,
  }
}

type Finished = Extract<NativeTrainEvent, { type: 'finished' }>
type Happening = Exclude<NativeTrainEvent, Finished>

/**
 * A run under way: iterate over it for its steps, await `result` for what came of it. It has been started, whether
 * anyone iterates or not. Errors come from the iteration and from `result`; an abort (the signal, or leaving the loop)
 * first saves a checkpoint that `resume` goes on from.
 */
export class TrainingRun implements AsyncIterableIterator<TrainProgress> {
  /** How it ended. Rejects with whatever ended it early; that counts as handled. */
  readonly result: Promise<TrainResult>
  readonly #steps: TrainProgress[] = []
  #finished = false
  #error: MambaError | undefined
  #wake: (() => void)[] = []
  readonly #stop = new AbortController()

  /** @internal */
  constructor(run: (stop: AbortSignal, push: (progress: TrainProgress) => void) => Promise<TrainResult>) {
    const end = (error?: MambaError) => {
      this.#error = error
      this.#finished = true
      this.#changed()
    }
    this.result = run(this.#stop.signal, (progress) => this.#push(progress))
    // Who only iterates sees an error there.
    this.result.then(() => end(), end)
  }

  #push(progress: TrainProgress) {
    this.#steps.push(progress)
    if (this.#steps.length > waiting) this.#steps.shift()
    this.#changed()
  }

  #changed() {
    for (const wake of this.#wake.splice(0)) wake()
  }

  /** The next step. Rejects once, with what ended the run early. */
  async next(): Promise<IteratorResult<TrainProgress, undefined>> {
    while (this.#steps.length === 0 && !this.#finished) {
      await new Promise<void>((wake) => this.#wake.push(wake))
    }
    const value = this.#steps.shift()
    if (value) return { done: false, value }
    const error = this.#error
    this.#error = undefined
    if (error) throw error
    return { done: true, value: undefined }
  }

  /** Ends the run after its step; resolves when it was saved. */
  async return(): Promise<IteratorResult<TrainProgress, undefined>> {
    this.#stop.abort()
    await this.result.catch(() => {})
    this.#steps.length = 0
    this.#error = undefined
    return { done: true, value: undefined }
  }

  /** Itself: `for await` takes it as it is, and it goes on where it was. */
  [Symbol.asyncIterator](): this {
    return this
  }
}

/** Writes what an iterable gives into the run's folder. A run that is there already goes on with what it has, or is refused. */
async function keep(
  data: AsyncIterable<TrainExample>,
  out: string,
  resume: boolean,
  signal: AbortSignal,
): Promise<void> {
  const there = (name: string) =>
    access(join(out, name)).then(
      () => true,
      () => false,
    )
  const begun = await there('run.json')
  if (begun && (!resume || (await there('data.jsonl')))) return
  // Checkpoints without a run are refused by the core; until they have one again their data stay as they are.
  if (
    !begun &&
    (await there('data.jsonl')) &&
    (await readdir(join(out, 'checkpoints')).catch(() => [])).length
  )
    return
  const file = join(out, 'data.jsonl')
  /** What goes wrong in writing is told apart from what the source throws. */
  const writing = <T>(work: Promise<T>): Promise<T> =>
    work.catch((cause: NodeJS.ErrnoException) => {
      throw cause.code === 'ENOSPC'
        ? new MambaError('DISK_FULL', `no space left while writing ${file}`, { cause })
        : new MambaError('IO_ERROR', `cannot write ${file}: ${cause.message}`, { cause })
    })
  await writing(mkdir(out, { recursive: true }))
  const part = await writing(open(`${file}.part`, 'w'))
  const source = data[Symbol.asyncIterator]()
  try {
    for (let number = 0; ; number++) {
      const { done, value } = await untilAborted(source.next(), signal)
      if (done) break
      await writing(part.appendFile(`${line(value, number)}\n`))
    }
    await writing(part.sync())
  } finally {
    // Not awaited: a source that is waiting for its next example would only answer after it.
    void Promise.resolve(source.return?.()).catch(() => {})
    await part.close()
  }
  await writing(rename(`${file}.part`, file))
}

/** An example as a JSON line. A vector may be what `embed` gave, a typed array. */
function line(example: TrainExample, number: number): string {
  const isText = typeof example === 'string' || Array.isArray(example) || example instanceof Uint32Array
  if (!isText && (typeof example !== 'object' || example === null)) {
    throw new MambaError(
      'INVALID_ARGUMENT',
      `example ${number} of the data is ${shown(example)}, expected a text, token ids or an object`,
    )
  }
  const plain = (_: string, value: unknown) =>
    ArrayBuffer.isView(value) ? Array.from(value as Float32Array) : value
  try {
    return JSON.stringify(isText ? { text: example } : example, plain)
  } catch (cause) {
    const message = `example ${number} of the data cannot be written as JSON: ${(cause as Error).message}`
    throw new MambaError('INVALID_ARGUMENT', message, { cause })
  }
}

/** Options of {@link mergeAdapter}. */
export interface MergeOptions {
  /** Type to write the matrices in. Default: `f32`, in which the merged model computes what the two did. */
  dtype?: DType
}

/**
 * Writes a model with a LoRA adapter merged into its matrices, in the official format.
 *
 * @param model What `Mamba.load` takes.
 * @param adapter The adapter's folder: `result.adapter`, or one that PEFT wrote.
 * @param folder Where to; made if it is not there.
 * @throws {@link MambaError} as `Mamba.load` about the model; `ADAPTER_INVALID`, `ADAPTER_MISMATCH`, `FILE_NOT_FOUND`,
 * `IO_ERROR`, `DISK_FULL`
 */
export async function mergeAdapter(
  model: string | URL,
  adapter: string | URL,
  folder: string | URL,
  options?: MergeOptions,
): Promise<void> {
  const dtype = new Options(options, ['dtype']).string('dtype')
  const [base, from, to] = [resolveSource(model), toPath(adapter), toPath(folder)]
  await call<null>(undefined, (done) => binding().mergeAdapter(base, from, to, dtype, done))
}
