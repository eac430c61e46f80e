// The program `node-mamba` as npm users start it: with node, from what tsc compiled.
import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import test from 'ava'

export const program = fileURLToPath(new URL('../../dist/lib/cli/main.js', import.meta.url))

/** How a call ended. */
export interface Outcome {
  status: number | null
  stdout: string
  stderr: string
}

/** Where and with what the program runs. */
export interface Surroundings {
  input?: string | Buffer
  env?: Record<string, string>
  cwd?: string
}

const environment = (env: Record<string, string> = {}) => ({ ...process.env, NODE_OPTIONS: '', ...env })

/** Runs it to its end. */
export function run(args: string[], { input = '', env, cwd }: Surroundings = {}): Outcome {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
    input,
    cwd,
    env: environment(env),
  })
  return { status, stdout, stderr }
}

/** Starts it; what it has printed so far is in `out` and `err`. */
export function start(args: string[], { env, cwd }: Surroundings = {}) {
  return follow(spawn(process.execPath, [program, ...args], { cwd, env: environment(env) }))
}

/** Starts it in a terminal of its own, whose keys are what is written to its standard input. */
export function startInTerminal(args: string[], env: Record<string, string> = {}) {
  const quoted = [process.execPath, program, ...args]
    .map((word) => `'${word.replaceAll("'", `'\\''`)}'`)
    .join(' ')
  const settings = { TERM: 'xterm-256color', COLORTERM: '', NO_COLOR: '', FORCE_COLOR: '', CI: '', ...env }
  const variables = Object.fromEntries(
    Object.entries(environment(settings)).filter(([name, value]) => value !== '' || name === 'NODE_OPTIONS'),
  )
  return follow(spawn('script', ['-qec', quoted, '/dev/null'], { env: variables }))
}

/** A test that needs a terminal: util-linux's `script` makes one. */
export const testInTerminal = process.platform === 'linux' ? test : test.skip

function follow(child: ChildProcessWithoutNullStreams) {
  const started = {
    child,
    out: '',
    err: '',
    /** Resolves when it has ended. */
    ended: new Promise<Outcome & { signal: string | null }>((resolve, reject) => {
      child.on('error', reject)
      child.on('close', (status, signal) =>
        resolve({ status, signal, stdout: started.out, stderr: started.err }),
      )
    }),
    /** Waits until its output is as it should be. */
    async until(fits: (out: string, err: string) => boolean): Promise<void> {
      const deadline = Date.now() + 60_000
      while (!fits(started.out, started.err)) {
        if (child.exitCode !== null || Date.now() > deadline) {
          throw new Error(`never came, only: ${started.out}\n${started.err}`)
        }
        await new Promise((resolve) => setTimeout(resolve, 10))
      }
    },
  }
  child.stdin.on('error', () => {}) // it may have ended
  child.stdout.setEncoding('utf8').on('data', (text: string) => (started.out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (started.err += text))
  return started
}
