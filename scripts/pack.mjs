// npm run pack [-- --release]: the tarballs that npm users get, in .cache/pack/: the facade, the default
// model, and the platform package of this machine's local build; with --release, the platform packages
// whose binaries lie in npm/ (from npm run build:release), and those of the CUDA build (npm run build:cuda).
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

/** The packages in a folder that hold a platform's binary each. */
function platformsIn(folder) {
  return readdirSync(folder)
    .map((platform) => ({
      path: `${folder}/${platform}`,
      packageJson: readJson(`${folder}/${platform}/package.json`),
    }))
    .filter(({ packageJson }) => packageJson.main.endsWith('.node'))
}

/** Packs those of them whose binaries are there. */
function packBuilt(platforms, binaryOf) {
  const built = platforms.filter((platform) => existsSync(binaryOf(platform)))
  for (const platform of built) {
    pack(platform.packageJson, {
      [platform.packageJson.main]: binaryOf(platform),
      'README.md': `${platform.path}/README.md`,
      'THIRD-PARTY-LICENSES.txt': 'THIRD-PARTY-LICENSES.txt',
      LICENSE: 'LICENSE',
    })
  }
  return built.length > 0
}

const inPackage = ({ path, packageJson }) => `${path}/${packageJson.main}`
const platforms = platformsIn('npm')
if (!packBuilt(platforms, release ? inPackage : ({ packageJson }) => packageJson.main))
  fail('no binary to pack; npm run build:release makes one')

const cuda = readJson('npm-cuda/cuda/package.json')
if (release && packBuilt(platformsIn('npm-cuda'), inPackage))
  pack(cuda, {
    'index.js': 'npm-cuda/cuda/index.js',
    'README.md': 'npm-cuda/cuda/README.md',
    LICENSE: 'LICENSE',
  })

const model = 'models/mamba-novels-7m'
pack(readJson(`${model}/package.json`), { '.': model })

const facade = readJson('package.json')
for (const { packageJson } of platforms) facade.optionalDependencies[packageJson.name] = packageJson.version
// Named, so that package managers that hide what is not named show it to the facade, in this version only.
facade.peerDependencies[cuda.name] = cuda.version
facade.peerDependenciesMeta[cuda.name] = { optional: true }
for (const key of ['scripts', 'devDependencies', 'workspaces', 'napi', 'ava', 'allowScripts', 'overrides'])
  delete facade[key]
pack(facade, { dist: 'dist', 'README.md': 'README.md', 'CHANGELOG.md': 'CHANGELOG.md', LICENSE: 'LICENSE' })

rmSync(`${out}/stage`, { recursive: true })
