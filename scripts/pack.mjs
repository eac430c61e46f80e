// npm run pack [-- --release]: the tarballs that npm users get, in .cache/pack/: the facade, the default
// model, and the platform package of this machine's local build; with --release, the platform packages
// whose binaries lie in npm/ (from npm run build:release).
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { bootstrap } from './bootstrap.mjs'
import { fail, root, run, step } from './steps.mjs'

const release = process.argv.includes('--release')
const out = `${root}/.cache/pack`
const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'))

/** Packs the files given as { path in the package: path in the repository } with this package.json. */
function pack(packageJson, files) {
  const stage = `${out}/stage/${packageJson.name}`
  mkdirSync(stage, { recursive: true })
  for (const [to, from] of Object.entries(files)) cpSync(from, `${stage}/${to}`, { recursive: true })
  // npm's provenance is refused unless the package names the repository that built it.
  const repository = process.env.GITHUB_REPOSITORY
  if (repository) packageJson.repository = { type: 'git', url: `git+https://github.com/${repository}.git` }
  writeFileSync(`${stage}/package.json`, JSON.stringify(packageJson, null, 2))
  step(`Packing ${packageJson.name}`, () =>
    run('npm', ['pack', '--silent', stage, `--pack-destination=${out}`]),
  )
}

bootstrap()
rmSync(out, { recursive: true, force: true })

const platforms = readdirSync('npm').map((platform) => {
  const packageJson = readJson(`npm/${platform}/package.json`)
  const binary = `${release ? `npm/${platform}/` : ''}${packageJson.main}`
  return { platform, packageJson, binary }
})
const built = platforms.filter(({ binary }) => existsSync(binary))
if (built.length === 0) fail('no binary to pack; npm run build:release makes one')
for (const { platform, packageJson, binary } of built) {
  pack(packageJson, {
    [packageJson.main]: binary,
    'README.md': `npm/${platform}/README.md`,
    'THIRD-PARTY-LICENSES.txt': 'THIRD-PARTY-LICENSES.txt',
    LICENSE: 'LICENSE',
  })
}

const model = 'models/mamba-novels-7m'
pack(readJson(`${model}/package.json`), { '.': model })

const facade = readJson('package.json')
for (const { packageJson } of platforms) facade.optionalDependencies[packageJson.name] = packageJson.version
for (const key of ['scripts', 'devDependencies', 'workspaces', 'napi', 'ava', 'allowScripts', 'overrides'])
  delete facade[key]
pack(facade, { dist: 'dist', 'README.md': 'README.md', 'CHANGELOG.md': 'CHANGELOG.md', LICENSE: 'LICENSE' })

rmSync(`${out}/stage`, { recursive: true })
