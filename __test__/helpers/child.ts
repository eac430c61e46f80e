import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/**
 * Runs a module in a Node of its own, with what tsc compiled as `node-mamba` (`Mamba` is imported). It is
 * killed after `timeout` milliseconds, and then `signal` says so.
 */
export function runChild(
  source: string,
  {
    nodeOptions = [],
    env = {},
    timeout = 60_000,
  }: { nodeOptions?: string[]; env?: Record<string, string>; timeout?: number } = {},
): Promise<{ code: number | null; signal: string | null; stdout: string; stderr: string }> {
  const script = `import { Mamba } from './dist/index.js'\n${source}`
  const child = spawn(process.execPath, [...nodeOptions, '--input-type=module', '-e', script], {
    cwd: root,
    env: { ...process.env, NODE_OPTIONS: '', ...env },
    timeout,
    killSignal: 'SIGKILL',
  })
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => (output[name] += text))
  }
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, ...output }))
  })
}
