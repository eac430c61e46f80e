import { text } from 'node:stream/consumers'
import { MambaError, type MambaErrorCode } from '../errors.js'

/** The text of an argument, or of standard input where it is missing or `-`. */
export async function textOf(argument: string | undefined, what: string): Promise<string> {
  if (argument !== undefined && argument !== '-') return argument
  if (process.stdin.isTTY) process.stderr.write(`reading the ${what} from the terminal; Ctrl-D ends it\n`)
  return text(process.stdin)
}

/** An error of the operating system about a file, as the library would have it. */
export function fileError(error: unknown, file: string): MambaError {
  if (error instanceof MambaError) return error
  const { code, message } = error as NodeJS.ErrnoException
  const codes: Record<string, MambaErrorCode> = { ENOENT: 'FILE_NOT_FOUND', ENOSPC: 'DISK_FULL' }
  return new MambaError(codes[code ?? ''] ?? 'IO_ERROR', `${file}: ${message}`, { cause: error })
}
