import { aborted, type Abortable } from './call.js'
import type { NativeModel } from './native.js'
import { Options } from './options.js'

/**
 * What a model's engine does and how fast. Rates are over the last 10 seconds, percentiles over the last 60, totals since
 * the model was loaded.
 */
export interface Stats {
  /** Calls that were accepted and not answered yet. */
  requestsInFlight: number
  /** Calls so far, refused ones included. */
  requestsTotal: number
  /** How many of them were refused with `QUEUE_FULL`. */
  requestsRefused: number
  /** Sequences (a call has one, or one for each text to embed) that wait for a slot. */
  waiting: number
  /** Sequences in slots. */
  running: number
  /** Generations whose consumers do not keep up: they have no slot, and go on when what they gave is taken. */
  resting: number
  /** Slots: `maxBatch`. */
  slots: number
  /** Mean number of sequences in a step. Times without steps do not count. */
  meanBatch: number
  /** Tokens of prompts and texts that were computed. */
  promptTokensTotal: number
  /** Tokens that were generated. */
  generatedTokensTotal: number
  /** Tokens of prompts and texts a second. */
  promptTokensPerSecond: number
  /** Generated tokens a second, of all calls together. */
  generatedTokensPerSecond: number
  /** From a call to the first token of its text, tokenization and waiting included. */
  timeToFirstToken: Percentiles
  /** From a token of a text to its next one. */
  interToken: Percentiles
  /** Of the prefix cache; all 0 where there is none. */
  prefixCache: PrefixCacheStats
  /** Bytes of all weights. */
  weightBytes: number
  /** Bytes of all slots' states, on a GPU those of the prefix cache's included. */
  stateBytes: number
  /** Of the whole GPU, whoever uses it; a second old at most while the engine works. */
  deviceMemory?: { freeBytes: number; totalBytes: number }
}

/** How long something took, in seconds, within 3 %; 0 where there was none. */
export interface Percentiles {
  /** How often it was measured. */
  count: number
  /** Half of them took no longer. */
  p50: number
  /** Nine of ten. */
  p90: number
  /** 99 of a hundred. */
  p99: number
}

/** Of the prefix cache. */
export interface PrefixCacheStats {
  /** Prompts that were looked up. */
  lookups: number
  /** How many of them began with something cached. */
  hits: number
  /** Tokens that were not computed, for that. */
  cachedTokens: number
  /** States in it. */
  states: number
  /** Bytes of states and of the paths to them. */
  bytes: number
}

/** How often {@link Stats} are given. */
export interface StatsStreamOptions extends Abortable {
  /** Milliseconds from one to the next, from 10. Default: 1000. */
  interval?: number
}

/** Behind `model.statsStream`. */
export async function* statsStream(
  model: () => NativeModel,
  disposed: () => boolean,
  options: StatsStreamOptions | undefined,
): AsyncGenerator<Stats, void, undefined> {
  const read = new Options(options, ['interval', 'signal'])
  const [interval, signal] = [read.integer('interval', 10, 2 ** 31 - 1) ?? 1000, read.signal()]
  while (!disposed()) {
    if (signal?.aborted) throw aborted(signal)
    yield model().stats()
    await new Promise<void>((resolve) => {
      const wake = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', wake)
        resolve()
      }
      // Who only watches does not keep the process alive.
      const timer = setTimeout(wake, interval).unref()
      signal?.addEventListener('abort', wake, { once: true })
    })
  }
}
