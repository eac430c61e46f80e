import { createReadStream, fstatSync } from 'node:fs'
import { open, rm, stat, type FileHandle } from 'node:fs/promises'
import { Command, Option } from 'commander'
import type { EmbedOptions } from '../embed.js'
import { MambaError } from '../errors.js'
import type { Mamba } from '../model.js'
import { addExamples, addModelOptions, integer, withModel, type ModelOptions } from './arguments.js'
import { fileError } from './input.js'
import { interrupted } from './interrupt.js'
import { lineError, readLines, type Line } from './lines.js'
import { Progress } from './progress.js'
import { grouped, print } from './terminal.js'

interface CommandOptions extends ModelOptions {
  output?: string
  resume?: boolean
  pooling?: 'mean' | 'last'
  dimensions?: number
  normalize: boolean
  encoding: 'float' | 'base64'
  batchSize?: number
}

/** A text to embed and what its record repeats. */
interface Item {
  line: number
  id?: unknown
  text: string
  /** Bytes of the input up to here. */
  bytes: number
}

/** Where a broken-off output goes on. */
interface Place {
  /** The input's line that the last whole record is about; 0 if there is none. */
  line: number
  vector?: Float32Array
}

/** `node-mamba embed`. */
export function embedCommand(): Command {
  const command = new Command('embed')
    .summary('turns the texts of a JSON lines file into vectors')
    .description(
      'Turns texts into vectors, any number of them in constant memory. Each line of the input is a JSON string, or ' +
        'an object with "text" and, if you like, "id"; each line of the output is {"line", "id", "embedding"}, in ' +
        "the input's order. Blank lines are skipped. The first line that is wrong ends the work with its number; " +
        'what comes before it has been written.',
    )
    .argument('[input]', 'the file; standard input where it is missing or -')
    .option('-o, --output <file>', 'write there instead of to standard output; refused if it exists')
    .option(
      '--resume',
      'go on where an output that broke off ends (with --output; a new one is begun if there is none)',
    )
    .addOption(
      new Option('--pooling <how>', 'of all tokens or the last one (mean)').choices(['mean', 'last']),
    )
    .option('--dimensions <count>', 'keep the first so many components (all)', integer(1))
    .option('--no-normalize', 'do not scale the vectors to length 1')
    .addOption(
      new Option('--encoding <how>', 'numbers, or base64 of little-endian f32')
        .choices(['float', 'base64'])
        .default('float'),
    )
    .option('--batch-size <count>', 'texts computed together (64)', integer(1))
  addModelOptions(command).action(run)
  return addExamples(command, {
    'A file to a file, and on after an interruption:':
      'node-mamba embed texts.jsonl -o vectors.jsonl --resume',
    'In a pipe:': `printf '%s\\n' '"a ship"' '{"id": 7, "text": "a boat"}' | node-mamba embed`,
  })
}

async function run(input: string | undefined, options: CommandOptions, command: Command): Promise<void> {
  const { output: file, resume } = options
  if (resume && file === undefined)
    command.error('error: --resume goes on with a file, so it needs --output <file>')
  const name = input === undefined || input === '-' ? 'standard input' : input
  const source = await openInput(input, name)
  const output = file === undefined ? undefined : await openOutput(file, resume)
  try {
    await withModel(options, (model) => embedAll(model, source, name, output, options))
  } catch (error) {
    // So that the same command can be repeated when what was wrong is mended.
    if (output?.isNew && (await output.handle.stat()).size === 0) await rm(output.file, { force: true })
    throw error
  } finally {
    source.stream.destroy()
    await output?.handle.close()
  }
}

async function embedAll(
  model: Mamba,
  source: Source,
  name: string,
  output: Output | undefined,
  options: CommandOptions,
): Promise<void> {
  const { pooling, dimensions, normalize, batchSize, encoding } = options
  const how: EmbedOptions = { pooling, dimensions, normalize, signal: interrupted }
  const items = readItems(readLines(source.stream, name), name)
  const skipped = output ? await skip(items, output, (text) => model.embed(text, how), name) : 0

  const progress = new Progress('embedding')
  const start = performance.now()
  /** What was given to the model and has not come back, in that order. */
  const pending: Item[] = []
  let failure: unknown
  async function* texts() {
    try {
      for await (const item of items) {
        pending.push(item)
        yield item.text
      }
    } catch (error) {
      failure = error // after the texts before it
    }
  }
  let done = 0
  try {
    for await (const { vectors } of model.embedStream(texts(), { ...how, batchSize })) {
      const batch = pending.splice(0, vectors.length)
      const records = vectors.map((vector, i) => record(batch[i]!, vector, encoding)).join('')
      await (output ? append(output, records) : print(records))
      done += batch.length
      const rate = (done / (performance.now() - start)) * 1000
      const share = source.size === undefined ? undefined : batch.at(-1)!.bytes / source.size
      progress.update(share, `${grouped(skipped + done)} texts, ${grouped(rate)} a second`)
    }
    if (failure !== undefined) throw failure
    await output?.handle.sync()
  } finally {
    progress.done()
  }
  if (output && process.stderr.isTTY) {
    const before = skipped > 0 ? `, after ${grouped(skipped)} that were there` : ''
    process.stderr.write(`${grouped(done)} texts${before}: ${output.file}\n`)
  }
}

/** The texts of the lines. */
async function* readItems(lines: AsyncIterable<Line>, name: string): AsyncGenerator<Item, void, undefined> {
  for await (const { number: line, text: json, bytes } of lines) {
    if (json.trim() === '') continue
    let value: unknown
    try {
      value = JSON.parse(json)
    } catch (cause) {
      throw lineError(name, line, `is not JSON: ${(cause as Error).message}`, cause)
    }
    const { text, id } = (typeof value === 'string' ? { text: value } : (value ?? {})) as Record<
      string,
      unknown
    >
    if (typeof text !== 'string')
      throw lineError(name, line, 'is neither a string nor an object with a string "text"')
    if (text === '') throw lineError(name, line, 'is an empty text, which has no vector')
    yield { line, id, text, bytes }
  }
}

/** What every record begins with. */
const recordStart = '{"line":'

function record({ line, id }: Item, vector: Float32Array, encoding: 'float' | 'base64'): string {
  const start = `${recordStart}${line}${id === undefined ? '' : `,"id":${JSON.stringify(id)}`},"embedding":`
  if (encoding === 'base64') {
    return `${start}"${Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString('base64')}"}\n`
  }
  let numbers = ''
  // Nine digits tell every f32 from every other.
  for (const x of vector) numbers += `,${x.toPrecision(9)}`
  return `${start}[${numbers.slice(1)}]}\n`
}

/** The input and, where it is a file, its size in bytes. */
interface Source {
  stream: NodeJS.ReadableStream & { destroy(): void } & AsyncIterable<Buffer>
  size?: number
}

async function openInput(input: string | undefined, name: string): Promise<Source> {
  if (input === undefined || input === '-') {
    const stat = fstatSync(0)
    return { stream: process.stdin, ...(stat.isFile() && { size: stat.size }) }
  }
  try {
    const handle = await open(input)
    const stat = await handle.stat()
    if (stat.isDirectory()) {
      await handle.close()
      throw new MambaError('IO_ERROR', `${name} is a folder, expected a file of JSON lines`)
    }
    const stream = createReadStream(name, { fd: handle, highWaterMark: 1 << 18 })
    return { stream, ...(stat.isFile() && { size: stat.size }) } as Source
  } catch (error) {
    throw fileError(error, name)
  }
}

/** The output file, at the end of its last whole record. */
interface Output {
  file: string
  handle: FileHandle
  /** Whether there was none before. */
  isNew: boolean
  place: Place
}

async function openOutput(file: string, resume: boolean | undefined): Promise<Output> {
  try {
    const there = await stat(file).catch(() => undefined)
    if (!there || !resume) return { file, handle: await open(file, 'ax'), isNew: true, place: { line: 0 } }
    const handle = await open(file, 'a+')
    const { place, end } = await lastRecord(handle, there.size, file)
    await handle.truncate(end) // the rest is half of a record
    return { file, handle, isNew: false, place }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw fileError(error, file)
    throw new MambaError(
      'INVALID_ARGUMENT',
      `${file} exists, and nothing is overwritten: go on with it by --resume, or remove it`,
      { cause: error },
    )
  }
}

async function append({ handle, file }: Output, records: string): Promise<void> {
  try {
    await handle.appendFile(records)
  } catch (error) {
    throw fileError(error, file)
  }
}

/** The last whole line of a file, however long it is, and where it ends. */
async function lastRecord(
  handle: FileHandle,
  size: number,
  file: string,
): Promise<{ place: Place; end: number }> {
  for (let length = 1 << 16; ; length *= 4) {
    const start = Math.max(size - length, 0)
    const tail = Buffer.alloc(size - start)
    await handle.read(tail, 0, tail.length, start)
    const last = tail.lastIndexOf(10)
    const before = last <= 0 ? -1 : tail.lastIndexOf(10, last - 1)
    if (before === -1 && start > 0) continue // it begins further up
    if (last === -1) {
      // Only the beginning of a first record may be cut off; anything else is somebody's file.
      const found = tail.toString('latin1', 0, recordStart.length)
      if (!recordStart.startsWith(found)) throw noRecord(file)
      return { place: { line: 0 }, end: 0 }
    }
    return { place: toPlace(tail.toString('utf8', before + 1, last), file), end: start + last + 1 }
  }
}

function toPlace(json: string, file: string): Place {
  try {
    const { line, embedding } = JSON.parse(json) as { line: number; embedding: number[] | string }
    const packed = typeof embedding === 'string' ? Buffer.from(embedding, 'base64') : undefined
    const vector = packed
      ? Float32Array.from({ length: packed.length >> 2 }, (_, i) => packed.readFloatLE(4 * i))
      : Float32Array.from(embedding as number[])
    if (Number.isSafeInteger(line) && line > 0 && vector.length > 0) return { line, vector }
  } catch {}
  throw noRecord(file)
}

function noRecord(file: string): MambaError {
  return new MambaError(
    'INVALID_ARGUMENT',
    `the last line of ${file} is no record of this command, so --resume cannot go on with it; name another output`,
  )
}

/**
 * Passes over the texts that the output has; gives their number. The last of them is computed again: another text,
 * model or option than the output was begun with is noticed, rather than two kinds of vectors mixed in one file.
 */
async function skip(
  items: AsyncGenerator<Item>,
  { place, file }: Output,
  embed: (text: string) => Promise<Float32Array>,
  name: string,
): Promise<number> {
  if (place.line === 0) return 0
  let skipped = 0
  for (;;) {
    const { value: item } = (await items.next()) as { value: Item | undefined }
    skipped++
    if (item && item.line < place.line) continue
    const vector = item?.line === place.line ? await embed(item.text) : undefined
    if (vector && same(vector, place.vector!)) return skipped
    throw new MambaError(
      'INVALID_ARGUMENT',
      `${file} ends with the vector of line ${place.line}, and ` +
        `${item?.line === place.line ? `that of ${name} is another one` : `${name} has no text there`}: ` +
        '--resume needs the input, the model and the options that the output was begun with',
    )
  }
}

/** The same vector: products round otherwise with the size of a batch, by some 1e-6 of its length. */
function same(a: Float32Array, b: Float32Array): boolean {
  const [size, distance] = [Math.hypot(...a), Math.hypot(...a.map((x, i) => x - b[i]!))]
  return a.length === b.length && distance <= 1e-3 * size
}
