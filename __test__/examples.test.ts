// Every example runs, and does what it says.
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { temporaryFolder } from './helpers/folder.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const tested = new Set<string>()

/** Runs an example as its first lines say. */
function run(name: string, ...args: string[]): Promise<string> {
  tested.add(name)
  const child = spawn(process.execPath, ['--import=tsx', join('examples', name), ...args], {
    cwd: root,
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) =>
      code === 0 ? resolve(output) : reject(new Error(`exit code ${code}: ${output}`)),
    )
  })
}

test.serial('demo: with its own prompt and with one from the command line', async (t) => {
  const output = await run('demo.ts')
  t.regex(output, /It was a dark and stormy night, and the[^—]{100}/)
  t.regex(output, /prefill +[\d,]+ tokens\/s/)
  t.regex(output, /decode +[\d,]+ tokens\/s/)
  t.regex(output, /The ship sailed out of the harbour\. +1\.00 +0\.\d\d/)
  t.regex(output, /OK: the restored session went on identically/)
  t.regex(await run('demo.ts', 'My', 'dear Watson'), /\nMy dear Watson[^—]{20}/)
})

test.serial('quick-start', async (t) => {
  t.true((await run('quick-start.ts')).length > 50)
})

test.serial('session: a second run goes on where the first one ended', async (t) => {
  const file = join(temporaryFolder(t), 'story.session')
  const tokens = async () => Number(/(\d+) tokens, \d+ bytes/.exec(await run('session.ts', file))![1])
  const first = await tokens()
  t.is(await tokens(), first + 40)
})

test.serial('embed: the text about the sea is nearest to a sea voyage', async (t) => {
  const lines = (await run('embed.ts')).trim().split('\n')
  t.is(lines.length, 3)
  t.regex(lines[0]!, /^0\.\d+ The sailors/)
})

test.serial('many users: twelve answers, and the introduction was computed once', async (t) => {
  const output = await run('many-users.ts')
  t.is(output.match(/^(Ada|Ben|Eve): /gm)?.length, 12)
  // 12 times the introduction of some 70 tokens.
  t.true(Number(/(\d+) tokens of prompts were not/.exec(output)![1]) > 12 * 40, output)
})

test.serial('server: what a session knows is not computed again', async (t) => {
  const output = await run('server.ts')
  t.regex(
    output,
    /\(12 tokens of context, 12 of them computed\)[^]*\(56 tokens of context, 4 of them computed\)/,
  )
})

test.serial('train: an adapter learns what the texts have in common', async (t) => {
  const output = await run('train.ts', join(temporaryFolder(t), 'run'))
  const losses = [...output.matchAll(/held out (\d\.\d+)/g)].map(([, loss]) => Number(loss))
  t.is(losses.length, 3)
  t.true(losses[2]! < 1, output)
  t.regex(output, /with it: +Fisher: (northerly|southwest|variable|westerly)/)
})

test.serial('none is left out', (t) => {
  t.deepEqual([...tested].toSorted(), readdirSync(join(root, 'examples')).toSorted())
})
