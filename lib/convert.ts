import { binding } from './binding.js'
import { callWithProgress, type Abortable } from './call.js'
import type { DType } from './model.js'
import { Options } from './options.js'
import { resolveSource, toPath } from './source.js'

/** Options of {@link convert}. */
export interface ConvertOptions extends Abortable {
  /** Type to write the matrices in. Default: as in the checkpoint. */
  dtype?: DType
  /** Threads to convert on, 1 to 1024. Default: one for each processor that the process may use. */
  threads?: number
  /** Map the weights file instead of reading it (see `LoadOptions`). Default: true. */
  mmap?: boolean
  /** Called now and then, at last with all bytes written. An error that it throws ends the conversion. */
  onProgress?: (progress: ConvertProgress) => void
}

/** How far a conversion has come. */
export interface ConvertProgress {
  writtenBytes: number
  totalBytes: number
}

/**
 * Writes a checkpoint into a folder, in another type or format: `config.json`, `model.safetensors` and, where there is
 * one, `tokenizer.json`, each whole or not at all. `Mamba.load` takes the folder.
 *
 * `q8_0` and `q4_k` are GGUF's blocks of 32 and 256 weights in tensors of bytes (`q4_k`: matrices whose rows are no
 * multiple of 256 are `q8_0`): 8.5 and 4.5 bits a weight. Such a file has its own fingerprint; the original one
 * loaded with `dtype: 'q8_0'` has the original's.
 *
 * @param source What `Mamba.load` takes.
 * @param folder A path or `file:` URL; made if it is not there.
 * @throws {@link MambaError} as `Mamba.load` about the source; `OPTION_INVALID`, `IO_ERROR`, `DISK_FULL`, `ABORTED`
 */
export async function convert(
  source: string | URL,
  folder: string | URL,
  options?: ConvertOptions,
): Promise<void> {
  const read = new Options(options, ['dtype', 'threads', 'mmap', 'onProgress', 'signal'])
  const onProgress = read.function<(progress: ConvertProgress) => void>('onProgress')
  const native = {
    dtype: read.string('dtype'),
    threads: read.integer('threads'),
    mmap: read.boolean('mmap'),
  }
  const [from, to] = [resolveSource(source), toPath(folder)]
  await callWithProgress<ConvertProgress, null>(
    read.signal(),
    (onEvent) => binding().convert(from, to, native, onEvent),
    (event) => event === null,
    onProgress,
  )
}
