// npm run soak: the test files that ask for NODE_MAMBA_SOAK, in full length, a record of it in benches/results/.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { bootstrap } from './bootstrap.mjs'
import { ask, fail } from './steps.mjs'

bootstrap()
const files = readdirSync('__test__')
  .filter((name) => name.endsWith('.test.ts'))
  .filter((name) => readFileSync(`__test__/${name}`, 'utf8').includes('NODE_MAMBA_SOAK'))
if (files.length === 0) fail('no file in __test__ asks for NODE_MAMBA_SOAK')

const start = performance.now()
const { status, stdout } = spawnSync(
  process.execPath,
  ['node_modules/ava/entrypoints/cli.mjs', '--timeout=60m', ...files.map((name) => `__test__/${name}`)],
  { env: { ...process.env, NODE_MAMBA_SOAK: '1' }, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] },
)
process.stdout.write(stdout)

const record = {
  date: new Date().toISOString(),
  commit: ask('git', 'rev-parse', 'HEAD'),
  clean: ask('git', 'status', '--porcelain') === '',
  processor: cpus()[0].model,
  cores: cpus().length,
  node: process.version,
  seconds: Math.round((performance.now() - start) / 1000),
  passed: stdout.match(/^ +✔ /gm)?.length ?? 0,
  failed: stdout.match(/^ +✘ /gm)?.length ?? 0,
  // What the tests log with t.log(): counts of cycles, memory before and after.
  log: (stdout.match(/^ +ℹ .*/gm) ?? []).map((line) => line.trim().slice(2)),
}
mkdirSync('benches/results', { recursive: true })
writeFileSync('benches/results/soak.json', `${JSON.stringify(record, null, 2)}\n`)
console.log('benches/results/soak.json')
process.exitCode = status ?? 1
