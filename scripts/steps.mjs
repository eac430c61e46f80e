// What the other scripts share: run a program, and say in one line what was done and how long it took.
import { spawnSync } from 'node:child_process'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The repository. Every path below is relative to it. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)))
process.chdir(root)

const windows = process.platform === 'win32'

/** Ends the script with a message for a person, without a stack trace. */
export function fail(message) {
  console.error(message)
  process.exit(1)
}

/** A program's output (stdout, trimmed), or null when it is not there or fails. */
export function ask(command, ...args) {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8', shell: windows })
  return status === 0 ? stdout.trim() : null
}

/** Runs a program with this terminal; its exit status. `env` is added to the environment. */
export function run(command, args, { env, quiet = false } = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    stdio: ['ignore', quiet ? 'ignore' : 'inherit', 'inherit'],
    env: { ...process.env, ...env },
    shell: windows,
  })
  if (error) console.error(`${command}: ${error.message}`)
  if (signal) console.error(`${command}: ended by ${signal}`)
  return status ?? 1
}

/** A program of node_modules, started without npx (which costs half a second each time). */
export function tool(script, args, options) {
  return run(process.execPath, [`node_modules/${script}`, ...args], options)
}

/** Does one step; ends the script when `work` returns a status other than 0. */
export function step(title, work) {
  console.log(`• ${title} …`)
  const start = performance.now()
  const status = work()
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  if (status) fail(`✖ ${title}: failed after ${seconds} s`)
  console.log(`✔ ${title} (${seconds} s)`)
}
