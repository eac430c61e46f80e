// The examples of docs/cli.md run as they stand, one after the other in one folder.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { program, run, testPosix } from './helpers/cli.js'
import { temporaryFolder } from './helpers/folder.js'

const text = readFileSync(fileURLToPath(new URL('../docs/cli.md', import.meta.url)), 'utf8')

testPosix('every block of docs/cli.md runs', (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'bin'))
  const script = `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`
  writeFileSync(join(folder, 'bin/node-mamba'), script, { mode: 0o755 })
  const blocks = [...text.matchAll(/```sh\n([^]*?)```/g)].map(([, block]) => block!)
  t.true(blocks.length >= 7)
  for (const block of blocks) {
    const { status, stderr } = spawnSync('bash', ['-euo', 'pipefail', '-c', block], {
      cwd: folder,
      encoding: 'utf8',
      env: {
        ...process.env,
        NODE_OPTIONS: '',
        PATH: `${join(folder, 'bin')}${delimiter}${process.env.PATH}`,
      },
    })
    t.deepEqual([status, stderr], [0, ''], block)
  }
})

test('docs/cli.md names every command', (t) => {
  const commands = [...run(['--help']).stdout.matchAll(/^ {2}([a-z]+) (?:\[|<)/gm)].map(([, name]) => name)
  const rows = [...text.matchAll(/^\| `([a-z]+)` \|/gm)].map(([, name]) => name)
  t.deepEqual(
    commands.filter((name) => !rows.includes(name)),
    [],
  )
})
