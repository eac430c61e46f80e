import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { version } from 'node-mamba'

const root = fileURLToPath(new URL('..', import.meta.url))
const packageJson = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }

/** Runs a script in a process of its own, with what tsc compiled; gives what it prints. */
function runScript(script: string, { folder = root, env = {} } = {}): string {
  return execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', ...env },
  }).trim()
}

const printError = `import { version } from './dist/index.js'
try { version() } catch (error) { console.log(JSON.stringify(
  { name: error.name, code: error.code, message: error.message, causes: error.cause.errors.length })) }`

test('the binary has the version of the package, from sources and from dist/', (t) => {
  t.is(version(), packageJson.version)
  t.is(runScript(`import { version } from './dist/index.js'; console.log(version())`), packageJson.version)
})

test('require() of the ES module works', (t) => {
  const script = `import { createRequire } from 'node:module'
    console.log(createRequire(import.meta.url)('./dist/index.js').version())`
  t.is(runScript(script), packageJson.version)
})

test('without a binary, the error lists everything that was tried and why it failed', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'node-mamba-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}')
  const error = JSON.parse(runScript(printError, { folder })) as {
    code: string
    message: string
    causes: number
  }
  t.is(error.code, 'BINDING_NOT_FOUND')
  t.is(error.causes, 2)
  const lines = error.message.split('\n')
  t.is(lines.length, 3)
  t.regex(lines[1]!, /^- .*node-mamba\..+\.node: Cannot find module/)
  t.regex(lines[2]!, /^- @node-mamba\/.+: Cannot find module/)
})

test('NODE_MAMBA_BINARY alone is tried when it is set', (t) => {
  const error = JSON.parse(runScript(printError, { env: { NODE_MAMBA_BINARY: '/nowhere/x.node' } })) as {
    code: string
    message: string
    causes: number
  }
  t.is(error.code, 'BINDING_NOT_FOUND')
  t.is(error.causes, 1)
  t.regex(error.message, /NODE_MAMBA_BINARY is set[^]*\/nowhere\/x\.node: Cannot find module/)
})

test('the environment forces the instruction set, and diagnose() says so', (t) => {
  const diagnosed = (cpu: string) =>
    JSON.parse(
      runScript(
        `import { diagnose } from './dist/index.js'; const { simd, notes } = diagnose(); console.log(JSON.stringify({ simd, notes }))`,
        { env: { NODE_MAMBA_CPU: cpu } },
      ),
    ) as { simd: string; notes: string[] }
  const portable = diagnosed('portable')
  t.is(portable.simd, 'portable')
  t.regex(portable.notes[0]!, /NODE_MAMBA_CPU.*portable/)
  const misspelt = diagnosed('avx1024')
  t.is(misspelt.simd, diagnosed('amx').simd)
  t.regex(misspelt.notes[0]!, /avx1024.*none of portable, avx2/)
})
