import { MambaError, type MambaErrorCode } from './errors.js'
import type { NativeCallback, NativeJob, NativeStanding } from './native.js'
import type { Options } from './options.js'

/** What stops a call, and the part of every long call's options that says so. */
export interface Abortable {
  /**
   * Ends the call within one step of the engine; it then rejects with `ABORTED`, whose `cause` is the signal's
   * reason. The model stays usable.
   */
  signal?: AbortSignal
}

/** Whose a call is and how urgent, and the part of the options of everything the engine computes that says so. */
export interface Queued extends Abortable {
  /**
   * Whose call it is. Where there are more calls than `maxBatch`, users are served in turn, however many calls each has.
   * Default: a call without a user has a turn of its own.
   */
  user?: string
  /**
   * How urgent it is. Of slots that become free, and of what a step computes of prompts, `high` gets four times as much as
   * `normal`, and that four times as much as `low`; none starves. Default: `normal`.
   */
  priority?: Priority
  /** Which of the adapters that the model was loaded with (`LoadOptions.adapters`) it runs with. Default: none. */
  adapter?: string
}

/** How urgent a call is. */
export type Priority = 'high' | 'normal' | 'low'

/** The names of {@link Queued}'s options. */
export const queuedNames = [
  'user',
  'priority',
  'adapter',
  'signal',
] as const satisfies readonly (keyof Queued)[]

/** Reads {@link Queued}'s options but the signal. */
export function readStanding(read: Options<Queued>): NativeStanding {
  return {
    user: read.string('user'),
    priority: read.oneOf('priority', ['high', 'normal', 'low']),
    adapter: read.string('adapter'),
  }
}

/** The error that the addon gave, as this package throws it. */
export function toMambaError(error: unknown): MambaError {
  if (error instanceof MambaError) return error
  const { code, message } = error as { code?: unknown; message: string }
  // The core's codes are in capitals; Node-API's own (StringExpected, …) are about arguments.
  if (typeof code === 'string' && /^[A-Z_]+$/.test(code))
    return new MambaError(code as MambaErrorCode, message)
  return new MambaError(code === 'GenericFailure' ? 'INTERNAL' : 'INVALID_ARGUMENT', message, {
    cause: error,
  })
}

/** Runs what the addon does at once. */
export function direct<T>(run: () => T): T {
  try {
    return run()
  } catch (error) {
    throw toMambaError(error)
  }
}

export function aborted(signal: AbortSignal): MambaError {
  return new MambaError('ABORTED', 'the call was aborted', { cause: signal.reason })
}

/** The next item of a source; one that never answers must not outlive an abort. */
export async function untilAborted<T>(next: T | Promise<T>, signal: AbortSignal): Promise<T> {
  if (!(next instanceof Promise)) return next
  return new Promise((resolve, reject) => {
    const abort = () => reject(aborted(signal))
    if (signal.aborted) abort()
    signal.addEventListener('abort', abort, { once: true })
    next.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}

/**
 * Starts something in the addon. `settle` is called once, with what it ends with; `start`'s callback must be
 * given the last event only. What is returned asks it to end early or to rest, and takes the tokens that came.
 */
export function begin<T>(
  signal: AbortSignal | undefined,
  start: (last: NativeCallback<T>) => NativeJob | void,
  settle: NativeCallback<T>,
): Pick<NativeJob, 'cancel' | 'pause' | 'take'> {
  if (signal?.aborted) throw aborted(signal)
  const cancel = () => job?.cancel()
  const job = direct(() =>
    start((error, value) => {
      signal?.removeEventListener('abort', cancel)
      settle(
        error && (signal?.aborted && error.code === 'ABORTED' ? aborted(signal) : toMambaError(error)),
        value,
      )
    }),
  )
  signal?.addEventListener('abort', cancel, { once: true })
  return { cancel, pause: (paused) => job?.pause(paused), take: () => job?.take() ?? [] }
}

/** {@link begin} as a promise. */
export function call<T>(
  signal: AbortSignal | undefined,
  start: (last: NativeCallback<T>) => NativeJob | void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    begin(signal, start, (error, value) => (error ? reject(error) : resolve(value)))
  })
}

/**
 * The same for what reports progress before its last event. An error that `onProgress` throws ends the call and is
 * what the promise rejects with.
 */
export function callWithProgress<P, T>(
  signal: AbortSignal | undefined,
  start: (onEvent: NativeCallback<P | T>) => NativeJob | void,
  isLast: (event: P | T) => event is T,
  onProgress: ((progress: P) => void) | undefined,
): Promise<T> {
  return new Promise((resolve, reject) => {
    let failed = false
    const job = begin<T>(
      signal,
      (last) =>
        start((error, event) => {
          if (error || isLast(event)) return last(error, event as T)
          try {
            if (!failed) onProgress?.(event)
          } catch (thrown) {
            failed = true
            reject(thrown)
            job.cancel()
          }
        }),
      (error, value) => (error ? reject(error) : resolve(value)),
    )
  })
}
