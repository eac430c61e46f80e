import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Command } from 'commander'
import { MambaError } from '../errors.js'
import { resolveSource } from '../source.js'
import { addExamples } from './arguments.js'
import { fileError } from './input.js'
import { bytes, grouped, print, printJson, table } from './terminal.js'

/** A tensor of a weights file. */
interface Tensor {
  name: string
  dtype: string
  shape: number[]
  bytes: number
}

interface ModelReport {
  kind: 'model'
  config: Record<string, unknown>
  files: { file: string; bytes: number }[]
  tokenizer: boolean
  /** Missing for pytorch_model.bin, a pickle. */
  tensors?: Tensor[]
  /** Elements of all tensors. Missing as `tensors` is, and where they are quantized blocks. */
  parameters?: number
}

interface SessionReport {
  kind: 'session'
  format: string
  bytes: number
  tokens: number
  seed: number
  fingerprint: string
  dtype: string
  device: string
}

/** `node-mamba inspect`. */
export function inspectCommand(): Command {
  const command = new Command('inspect')
    .summary('says what is in a checkpoint or a session file')
    .description(
      "Says what is in a checkpoint (configuration, tensors, types, sizes) or in a session file, from the files' " +
        'headers: it takes no time whatever their size, and no weights are read.',
    )
    .argument('[source]', "'default', './folder', './file' or a session's file", 'default')
    .option('--json', 'one JSON object, with every tensor in it')
    .action(async (source: string, { json }: { json?: boolean }) => {
      const report = inspect(source)
      if (json) return printJson(report)
      await print(`${report.kind === 'model' ? modelText(report) : sessionText(report)}\n`)
    })
  return addExamples(command, {
    'The default model:': 'node-mamba inspect',
    'The names of all tensors of your own:':
      "node-mamba inspect ./mamba-130m --json | jq -r '.tensors[].name'",
    'Which model a session belongs to:': 'node-mamba inspect ./story.session',
  })
}

function inspect(source: string): ModelReport | SessionReport {
  // A session's file may be named as any file is; a model's source has its own forms.
  const path = existsSync(source) && statSync(source).isFile() ? source : resolveSource(source)
  try {
    if (statSync(path).isDirectory()) return inspectModel(path)
    const start = readAt(path, 0, sessionName.length).toString('latin1')
    return start === sessionName ? inspectSession(path) : inspectModel(dirname(path), path)
  } catch (error) {
    throw fileError(error, path)
  }
}

const weightFiles = [
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
]

function inspectModel(folder: string, weights?: string): ModelReport {
  const file = weights ?? weightFiles.map((name) => join(folder, name)).find((path) => existsSync(path))
  if (!file) throw new MambaError('FILE_NOT_FOUND', `${folder} holds none of ${weightFiles.join(', ')}`)
  const configFile = join(folder, 'config.json')
  const config = parsed(readFileSync(configFile, 'utf8'), 'CONFIG_INVALID', configFile)
  const shards = file.endsWith('.index.json') ? shardsOf(file) : [file]
  const pickled = !shards[0]!.endsWith('.safetensors')
  const tensors = pickled ? undefined : shards.flatMap((shard) => tensorsOf(shard))
  // Quantized weights are blocks of bytes, whose number says nothing about that of the weights.
  const countable = tensors && !tensors.some(({ dtype }) => dtype === 'U8')
  return {
    kind: 'model',
    config,
    files: shards.map((shard) => ({ file: shard, bytes: statSync(shard).size })),
    tokenizer: existsSync(join(folder, 'tokenizer.json')),
    tensors,
    parameters: countable ? tensors.reduce((sum, { shape }) => sum + elements(shape), 0) : undefined,
  }
}

function shardsOf(index: string): string[] {
  const { weight_map: map } = parsed(readFileSync(index, 'utf8'), 'CHECKPOINT_INVALID', index)
  const names = typeof map === 'object' && map !== null ? new Set(Object.values(map)) : new Set()
  if (names.size === 0) throw new MambaError('CHECKPOINT_INVALID', `${index} has no weight_map, expected one`)
  return [...names].map((name) => join(dirname(index), String(name)))
}

/** The header of a safetensors file: its length in 8 bytes, then JSON. */
function tensorsOf(file: string): Tensor[] {
  const { size } = statSync(file)
  const length = size < 8 ? -1 : Number(readAt(file, 0, 8).readBigUInt64LE())
  if (length < 0 || length > size - 8 || length > 100_000_000) {
    throw new MambaError(
      'CHECKPOINT_INVALID',
      `${file} is no safetensors file: its header does not fit into it`,
    )
  }
  const header = parsed(readAt(file, 8, length).toString('utf8'), 'CHECKPOINT_INVALID', file)
  return Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, value]) => {
      const { dtype, shape, data_offsets: offsets } = (value ?? {}) as Record<string, unknown>
      const numbers = (list: unknown): list is number[] =>
        Array.isArray(list) && list.every((item) => typeof item === 'number')
      if (typeof dtype !== 'string' || !numbers(shape) || !numbers(offsets)) {
        throw new MambaError(
          'CHECKPOINT_INVALID',
          `${file}: tensor '${name}' has no dtype, shape or data_offsets`,
        )
      }
      return { name, dtype, shape, bytes: offsets[1]! - offsets[0]! }
    })
}

const sessionName = 'node-mamba-session/'

/** The format is described in crates/mamba/src/generate/session_file.rs. */
function inspectSession(file: string): SessionReport {
  const { size } = statSync(file)
  const start = readAt(file, 0, Math.min(size, 64))
  const line = start.indexOf('\n')
  const format = start.toString('latin1', 0, line)
  if (format !== `${sessionName}1`) {
    throw new MambaError(
      'SESSION_VERSION',
      `${file} is in the format '${format}', expected '${sessionName}1'`,
    )
  }
  const at = line + 1 + 4
  const length = start.length < at ? Infinity : start.readUInt32LE(line + 1)
  if (length > size - at) throw new MambaError('SESSION_INVALID', `${file} is cut short`)
  const header = parsed(readAt(file, at, length).toString('utf8'), 'SESSION_INVALID', file)
  const { tokens, seed, fingerprint, dtype, device } = header as unknown as SessionReport
  const whole =
    [tokens, seed].every((value) => typeof value === 'number') &&
    [fingerprint, dtype, device].every((value) => typeof value === 'string')
  if (!whole) {
    throw new MambaError(
      'SESSION_INVALID',
      `${file} has a header without tokens, seed, fingerprint, dtype or device`,
    )
  }
  return { kind: 'session', format, bytes: size, tokens, seed, fingerprint, dtype, device }
}

function readAt(file: string, position: number, length: number): Buffer {
  const buffer = Buffer.alloc(length)
  const handle = openSync(file, 'r')
  try {
    return buffer.subarray(0, readSync(handle, buffer, 0, length, position))
  } finally {
    closeSync(handle)
  }
}

function parsed(
  json: string,
  code: 'CONFIG_INVALID' | 'CHECKPOINT_INVALID' | 'SESSION_INVALID',
  file: string,
): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(json)
    if (typeof value === 'object' && value !== null && !Array.isArray(value))
      return value as Record<string, unknown>
  } catch (cause) {
    throw new MambaError(code, `${file} is not JSON: ${(cause as Error).message}`, { cause })
  }
  throw new MambaError(code, `${file} does not hold a JSON object, expected one`)
}

function elements(shape: number[]): number {
  return shape.reduce((product, size) => product * size, 1)
}

function modelText({ config, files, tokenizer, tensors, parameters }: ModelReport): string {
  const size = files.reduce((sum, { bytes }) => sum + bytes, 0)
  const where = files.length === 1 ? files[0]!.file : `${files.length} files beside ${files[0]!.file}`
  const about = [
    ['weights', `${where}, ${bytes(size)}`],
    ['parameters', parameters === undefined ? undefined : grouped(parameters)],
    ['tokenizer', tokenizer ? 'tokenizer.json' : 'none: takes token ids only'],
  ] as const
  const settings = Object.entries(config).map(([name, value]) => [name, JSON.stringify(value)] as const)
  const list = tensors
    ? tensorText(tensors)
    : 'the tensors of a pickle are not listed; node-mamba convert makes safetensors of it'
  return `${table(about)}\n\nconfig.json\n${table(settings)}\n\ntensors\n${list}`
}

/** The tensors; layers that are alike in one line. */
function tensorText(tensors: Tensor[]): string {
  const alike = new Map<string, { dtype: string; shape: string; count: number; bytes: number }>()
  for (const { name, dtype, shape, bytes } of tensors) {
    const size = `[${shape.join(', ')}]`
    const pattern = name.replace(/\.\d+\./, '.*.')
    const key = `${pattern} ${dtype} ${size}`
    const known = alike.get(key) ?? { dtype, shape: size, count: 0, bytes: 0 }
    alike.set(key, { ...known, count: known.count + 1, bytes: known.bytes + bytes })
  }
  const cells = [...alike].map(([key, { dtype, shape, count, bytes: total }]) => [
    key.split(' ')[0]!,
    dtype,
    shape,
    count > 1 ? `× ${count}` : '',
    bytes(total),
  ])
  const widths = cells[0]?.map((_, column) => Math.max(...cells.map((row) => row[column]!.length))) ?? []
  return cells
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

function sessionText({ format, bytes: size, tokens, fingerprint, dtype, device }: SessionReport): string {
  return table([
    ['session', `${format}, ${bytes(size)}`],
    ['tokens', grouped(tokens)],
    ['model', fingerprint],
    ['saved from', `${dtype} on ${device}`],
  ])
}
