// docs/server.md names every error, limit and metric that there is, and no other.
import { readdirSync, readFileSync } from 'node:fs'
import test from 'ava'
import { useModel } from './helpers/model.js'
import { testApp } from './helpers/server.js'

const model = useModel()
const folder = new URL('../lib/server/', import.meta.url)
const docs = readFileSync(new URL('../docs/server.md', import.meta.url), 'utf8')
const sources = readdirSync(folder)
  .map((name) => readFileSync(new URL(name, folder), 'utf8'))
  .join('\n')

/** The rows of the table whose head begins with these words. */
function table(head: string): string[][] {
  const rows = docs
    .slice(docs.indexOf(`| ${head}`))
    .split('\n\n')[0]!
    .split('\n')
    .slice(2)
  return rows.map((row) =>
    row
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  )
}

test('errors, by their status', (t) => {
  const thrown = [...sources.matchAll(/new ApiError\(\s*(\d+),\s*'(\w+)'/g)].map(
    ([, status, code]) => `${status} ${code}`,
  )
  const mapped = [...sources.matchAll(/^ {2}([A-Z_]+): (\d{3}),$/gm)].map(
    ([, code, status]) => `${status} ${code!.toLowerCase()}`,
  )
  const inBody = [...sources.matchAll(/'(invalid_value|missing_required_parameter|unknown_parameter)'/g)].map(
    ([, code]) => `400 ${code}`,
  )
  // Nobody is there to read it.
  const unseen = '400 client_left'
  const documented = table('status | codes').flatMap(([status, codes]) =>
    [...codes!.matchAll(/`([a-z_0-9]+)`/g)].map(([, code]) => `${status} ${code}`),
  )
  // 413 and 415 share a row.
  const split = documented.map((entry) =>
    entry.replace('413, 415 body', '413 body').replace('413, 415 unsupported', '415 unsupported'),
  )
  t.deepEqual(
    [...new Set(split)].toSorted(),
    [...new Set([...thrown, ...mapped, ...inBody])].filter((entry) => entry !== unseen).toSorted(),
  )
})

test('limits and their defaults', (t) => {
  const defaults = /const defaultLimits: Limits = \{([^}]*)\}/.exec(sources)![1]!
  const number = (text: string) => (text === '4 * 2 ** 20' ? 4 * 2 ** 20 : Number(text.replaceAll('_', '')))
  const expected = [...defaults.matchAll(/(\w+): ([\d_ *]+),/g)].map(([, name, value]) => [
    name,
    number(value!),
  ])
  const documented = table('limit | default').map(([name, value]) => [
    name!.replaceAll('`', ''),
    value === '4 MiB' ? 4 * 2 ** 20 : Number(value!.replaceAll(',', '')),
  ])
  t.deepEqual(documented, expected)
})

test('metrics', async (t) => {
  const { send } = await testApp(t, model())
  const names = new Set(
    [...((await send('/metrics')).body as string).matchAll(/^# TYPE (node_mamba_\w+)/gm)].map(
      ([, name]) => name!,
    ),
  )
  const documented = [...docs.matchAll(/`(node_mamba_\w+)/g)].map(([, name]) => name!)
  t.deepEqual([...new Set(documented)].toSorted(), [...names].toSorted())
})
