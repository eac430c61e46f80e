import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'

const root = fileURLToPath(new URL('..', import.meta.url))

test('when all is built, bootstrap does nothing and says nothing, at once', (t) => {
  const start = performance.now()
  const { status, stdout, stderr } = spawnSync(process.execPath, ['scripts/bootstrap.mjs'], {
    cwd: root,
    encoding: 'utf8',
  })
  const seconds = (performance.now() - start) / 1000
  t.is(`${status} ${stdout}${stderr}`, '0 ')
  t.log(`${seconds.toFixed(2)} s`)
  // A tenth of a second on an idle machine; a loaded one gets room.
  t.true(seconds < 1)
})

/** bootstrap in a folder that has nothing built, without a PATH; what it prints on standard error. */
function bare(rustVersion: string, nodeVersion: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'node-mamba-bare-'))
  try {
    cpSync(join(root, 'scripts'), join(folder, 'scripts'), { recursive: true })
    writeFileSync(join(folder, 'Cargo.toml'), `rust-version = "${rustVersion}"\n`)
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ engines: { node: `>=${nodeVersion}` } }))
    const { PATH: _path, ...env } = process.env
    const { status, stderr } = spawnSync(process.execPath, ['scripts/bootstrap.mjs'], {
      cwd: folder,
      encoding: 'utf8',
      env: { ...env, PATH: '' },
    })
    return `${status} ${stderr.trim()}`
  } finally {
    rmSync(folder, { recursive: true })
  }
}

test('a missing or old toolchain is named, with what is needed and where it is', (t) => {
  t.is(
    bare('1.89', '20.19'),
    '1 cargo is not there: node-mamba is built with cargo >= 1.89 (https://rustup.rs)',
  )
  t.is(bare('1.89', '99'), `1 node is ${process.versions.node}, expected >= 99 (https://nodejs.org)`)
})

test('the versions that bootstrap asks for are those that the manifests state', (t) => {
  const { engines } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    engines: { node: string }
  }
  t.regex(engines.node, /^>=\d+\.\d+$/)
  t.regex(readFileSync(join(root, 'Cargo.toml'), 'utf8'), /^rust-version = "\d+\.\d+"$/m)
})
