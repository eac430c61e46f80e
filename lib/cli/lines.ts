import { MambaError } from '../errors.js'
import { fileError } from './input.js'

/** A line of a file, without its end. */
export interface Line {
  /** From 1. */
  number: number
  text: string
  /** Bytes of the file up to here, this line included. */
  bytes: number
}

/** Longer than any text that makes sense, and short enough for any memory. */
const longest = 64 << 20

/** The lines of a UTF-8 stream, one at a time: memory is that of the longest line. */
export async function* readLines(
  chunks: AsyncIterable<Buffer>,
  file: string,
): AsyncGenerator<Line, void, undefined> {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let [number, bytes, length] = [0, 0, 0]
  let parts: Buffer[] = []

  const line = (size: number): Line => {
    number++
    bytes += size
    const whole = parts.length === 1 ? parts[0]! : Buffer.concat(parts)
    ;[parts, length] = [[], 0]
    try {
      return { number, text: decoder.decode(whole), bytes }
    } catch (cause) {
      throw lineError(file, number, 'is not UTF-8', cause)
    }
  }

  try {
    for await (const chunk of chunks) {
      let start = 0
      for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
        const part = chunk.subarray(start, end)
        parts.push(part)
        yield line(length + part.length + 1)
        start = end + 1
      }
      if (start === chunk.length) continue
      parts.push(chunk.subarray(start))
      length += chunk.length - start
      if (length > longest) throw lineError(file, number + 1, `is longer than ${longest} bytes`)
    }
  } catch (error) {
    throw fileError(error, file)
  }
  if (length > 0) yield line(length)
}

/** What is wrong with a line of a file, by its number. */
export function lineError(file: string, number: number, problem: string, cause?: unknown): MambaError {
  return new MambaError('INVALID_ARGUMENT', `${file}: line ${number} ${problem}`, { cause })
}
