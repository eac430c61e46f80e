// Makes a bare clone runnable: installs what npm has to install, builds the addon and the TypeScript, each
// only when its inputs changed since the last time. Uses nothing but Node, since nothing else is there yet.
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { pathToFileURL } from 'node:url'
import { ask, fail, run, step, tool } from './steps.mjs'

const stampsFile = '.cache/built.json'

/** Changes when a file below `paths` is added, removed or written. */
function fingerprint(paths, extensions) {
  const hash = createHash('sha1')
  const visit = (path) => {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (stat?.isDirectory()) for (const name of readdirSync(path).toSorted()) visit(`${path}/${name}`)
    else if (stat && extensions.some((end) => path.endsWith(end)))
      hash.update(`${path} ${stat.size} ${stat.mtimeMs}\n`)
  }
  paths.forEach(visit)
  return hash.digest('hex')
}

const packageJson = JSON.parse(readFileSync('package.json', 'utf8'))

const parts = {
  packages: {
    title: 'Installing the npm packages',
    inputs: () => process.version + fingerprint(['package-lock.json'], ['.json']),
    built: () => existsSync('node_modules/.package-lock.json'),
    build: () => run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']),
  },
  addon: {
    title: 'Building the native addon (cargo, release profile)',
    inputs: () =>
      ask('rustc', '--version') +
      JSON.stringify(packageJson.napi) +
      fingerprint(
        ['crates/mamba', 'crates/mamba-node', 'Cargo.toml', 'Cargo.lock', '.cargo'],
        ['.rs', '.toml', '.lock'],
      ),
    built: () => existsSync('lib/native.d.ts') && readdirSync('.').some((name) => name.endsWith('.node')),
    build: () =>
      tool('@napi-rs/cli/dist/cli.js', [
        'build',
        '--release',
        '--platform',
        '--no-js',
        '--dts=lib/native.d.ts',
        '--manifest-path=crates/mamba-node/Cargo.toml',
        '--output-dir=.',
      ]),
  },
  typescript: {
    title: 'Compiling TypeScript',
    inputs: () => fingerprint(['index.ts', 'lib', 'tsconfig.json', 'tsconfig.build.json'], ['.ts', '.json']),
    built: () => existsSync('dist/index.js'),
    build: () => {
      rmSync('dist', { recursive: true, force: true })
      const status = tool('typescript/bin/tsc', ['-p', 'tsconfig.build.json'])
      // tsc does not copy declarations that it was given, and the emitted ones refer to this one.
      if (status === 0) copyFileSync('lib/native.d.ts', 'dist/lib/native.d.ts')
      return status
    },
  },
  playground: {
    title: 'Building the playground',
    inputs: () => fingerprint(['playground'], ['.ts', '.tsx', '.css', '.html']),
    built: () => existsSync('dist/playground/index.html'),
    build: () => tool('vite/bin/vite.js', ['build', 'playground', '--logLevel=warn']),
  },
}

/** Ends with a message when a toolchain is missing or older than the manifests say. */
function need(name, found, wanted, where) {
  if (!found) fail(`${name} is not there: node-mamba is built with ${name} >= ${wanted} (${where})`)
  if (found.localeCompare(wanted, 'en', { numeric: true }) < 0)
    fail(`${name} is ${found}, expected >= ${wanted} (${where})`)
}

function needCargo() {
  const wanted = readFileSync('Cargo.toml', 'utf8').match(/^rust-version = "(.+)"/m)[1]
  const found = ask('cargo', '--version')?.match(/\d+\.\d+\.\d+/)?.[0]
  need('cargo', found, wanted, 'https://rustup.rs')
}

/** Brings everything up to date; returns at once when it is. */
export function bootstrap() {
  need('node', process.versions.node, packageJson.engines.node.replace('>=', ''), 'https://nodejs.org')
  const stamps = existsSync(stampsFile) ? JSON.parse(readFileSync(stampsFile, 'utf8')) : {}
  let checked = false
  for (const [name, part] of Object.entries(parts)) {
    if (part.built() && stamps[name] === part.inputs()) continue
    if (!checked) needCargo()
    checked = true
    step(part.title, part.build)
    stamps[name] = part.inputs()
    mkdirSync('.cache', { recursive: true })
    writeFileSync(stampsFile, JSON.stringify(stamps, null, 2))
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) bootstrap()
