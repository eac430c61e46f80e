const statuses = { SIGINT: 130, SIGTERM: 143, SIGPIPE: 141 }

const stop = new AbortController()
let status: number | undefined

/** Aborts when the program is to end: Ctrl-C, SIGTERM, or a reader of its output that has gone. */
export const interrupted: AbortSignal = stop.signal

/** The exit status that says what ended the program, if anything did. */
export function interruptStatus(): number | undefined {
  return status
}

/** Ends the program as a signal would: what is under way is aborted, sessions are saved. */
export function interrupt(cause: keyof typeof statuses): void {
  // Asked for twice, it ends at once.
  if (status !== undefined) process.exit(status)
  status = statuses[cause]
  stop.abort(new Error(cause))
}

/** Takes the signals over from Node, which would end the program at once. */
export function watchSignals(): void {
  process.on('SIGINT', () => interrupt('SIGINT'))
  process.on('SIGTERM', () => interrupt('SIGTERM'))
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    if (status === undefined) interrupt('SIGPIPE')
  })
}
