import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import test from 'ava'

const root = fileURLToPath(new URL('..', import.meta.url))

test('THIRD-PARTY-LICENSES.txt covers every crate that is linked into a binary', (t) => {
  const targets = [...readFileSync(`${root}/about.toml`, 'utf8').matchAll(/^ {2}"(.+)",$/gm)].map(
    (match) => match[1]!,
  )
  t.true(targets.length >= 7)
  const tree = execFileSync(
    'cargo',
    // Procedural macros run at build time only.
    [
      'tree',
      '--locked',
      '--offline',
      '-p',
      'mamba-node',
      '--features=cuda',
      '-e',
      'normal,no-proc-macro',
      '--prefix=none',
      '--format={p}',
    ].concat(targets.map((target) => `--target=${target}`)),
    { cwd: root, encoding: 'utf8' },
  )
  const crates = new Set(
    [...tree.matchAll(/^(\S+) v(\S+)$/gm)].map(([, name, version]) => `${name} ${version}`),
  )
  const text = readFileSync(`${root}/THIRD-PARTY-LICENSES.txt`, 'utf8')
  const listed = new Set([...text.matchAll(/^ {2}(\S+ \d\S*)(?: +http.*)?$/gm)].map((match) => match[1]!))
  t.true(crates.size > 20)
  t.deepEqual(
    [...crates].filter((crate) => !listed.has(crate)),
    [],
    'run `npm run licenses` (it needs cargo-about)',
  )
})
