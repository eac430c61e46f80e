import { setMaxListeners } from 'node:events'
import { aborted } from './call.js'
import {
  complete,
  readGenerateOptions,
  type Completion,
  type GenerateOptions,
  type StartGeneration,
} from './generate.js'

/**
 * Behind `model.completeBatch`: at most `inFlight` at a time, so that the engine's queue never overflows. The
 * first failure aborts the rest.
 */
export async function completeBatch(
  starts: readonly StartGeneration[],
  options: GenerateOptions | undefined,
  inFlight: number,
): Promise<Completion[]> {
  const { signal } = readGenerateOptions(options)
  if (signal?.aborted) throw aborted(signal)
  const stop = new AbortController()
  setMaxListeners(0, stop.signal) // one for each call in flight is no leak
  const forward = () => stop.abort(signal?.reason)
  signal?.addEventListener('abort', forward, { once: true })

  const results: Completion[] = []
  let failure: unknown
  let next = 0
  const work = async () => {
    while (next < starts.length && !stop.signal.aborted) {
      const i = next++
      try {
        results[i] = await complete(starts[i]!, { ...options, signal: stop.signal })
      } catch (error) {
        failure ??= error
        stop.abort()
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(inFlight, starts.length) }, work))
  signal?.removeEventListener('abort', forward)
  if (failure) throw failure
  if (results.length < starts.length) throw aborted(stop.signal) // between two prompts
  return results
}
