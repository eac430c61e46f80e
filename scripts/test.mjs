// npm test: the Rust tests, then those of the TypeScript side; both run even when the first fail.
import { spawn } from 'node:child_process'
import { bootstrap } from './bootstrap.mjs'

/** Runs a program, shows what it prints, and gives its exit status and standard output. */
async function watch(title, command, args) {
  console.log(`• ${title} …`)
  const start = performance.now()
  const color = process.stdout.isTTY ? { CARGO_TERM_COLOR: 'always', FORCE_COLOR: '1' } : {}
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...color },
  })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text
    process.stdout.write(text)
  })
  const status = await new Promise((resolve, reject) => child.on('error', reject).on('close', resolve))
  console.log(`${status === 0 ? '✔' : '✖'} ${title} (${((performance.now() - start) / 1000).toFixed(1)} s)`)
  // eslint-disable-next-line no-control-regex
  return { status, output: output.replace(/\x1b\[[0-9;]*m/g, '') }
}

const matches = (output, pattern) => [...output.matchAll(pattern)]
const sum = (found) => found.reduce((total, [, count]) => total + Number(count), 0)

bootstrap()
const rust = await watch('Rust tests', 'cargo', ['test', '--no-fail-fast', '--', '--quiet'])
const node = await watch('Node tests', process.execPath, ['node_modules/ava/entrypoints/cli.mjs'])

// ava marks each test, and gives the totals of what else went wrong.
const passed =
  sum(matches(rust.output, /^test result: .*? (\d+) passed/gm)) + matches(node.output, /^ +✔ /gm).length
const failed =
  sum(matches(rust.output, /^test result: .*? (\d+) failed/gm)) +
  sum(matches(node.output, /^ +(\d+) (?:tests? failed|uncaught exceptions?|unhandled rejections?)/gm))
// A test that does not compile, or a file that crashes, fails without being counted by its runner.
const broken = failed === 0 && (rust.status !== 0 || node.status !== 0) ? 1 : 0

console.log(`${passed} passed, ${failed + broken} failed`)
process.exitCode = failed + broken > 0 ? 1 : 0
