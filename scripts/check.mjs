// npm run check: everything but the tests that has to hold before a commit. All of it runs; what failed is
// named at the end.
import { bootstrap } from './bootstrap.mjs'
import { cudaEnvironment } from './cuda-toolkit.mjs'
import { ask, fail, run, tool } from './steps.mjs'

bootstrap() // the types of the addon come from building it

const denyWarnings = { env: { RUSTDOCFLAGS: '-D warnings' } }
const checks = {
  'cargo fmt': () => run('cargo', ['fmt', '--check']),
  'cargo clippy': () => run('cargo', ['clippy', '--quiet', '--all-targets', '--', '-D', 'warnings']),
  'cargo clippy, the CUDA build': () => {
    const env = cudaEnvironment()
    if (!env) {
      console.log('  NVIDIA’s compiler is not there, so skipped: node scripts/cuda-toolkit.mjs')
      return 0
    }
    const features = ['--workspace', '--features=mamba/cuda,mamba-node/cuda']
    return run('cargo', ['clippy', '--quiet', '--all-targets', ...features, '--', '-D', 'warnings'], { env })
  },
  'cargo doc': () => run('cargo', ['doc', '--quiet', '--no-deps', '-p', 'mamba'], denyWarnings),
  'cargo deny': () => {
    if (ask('cargo', 'deny', '--version') === null) {
      console.log('  not installed, so skipped: cargo install --locked cargo-deny@0.20.2')
      return 0
    }
    // The advisories are fetched from GitHub, so they are a job of .github/workflows/ci.yml.
    return run('cargo', ['deny', '--log-level=error', 'check', 'licenses', 'bans', 'sources'])
  },
  prettier: () => tool('prettier/bin/prettier.cjs', ['--check', '--log-level=warn', '.']),
  oxlint: () => tool('oxlint/bin/oxlint', ['--deny-warnings', '--quiet']),
  'types (sources, tests, type tests, examples)': () => tool('typescript/bin/tsc', []),
  'types (playground)': () => tool('typescript/bin/tsc', ['-p', 'playground']),
}

const failures = []
for (const [name, check] of Object.entries(checks)) {
  const start = performance.now()
  const passed = check() === 0
  if (!passed) failures.push(name)
  console.log(`${passed ? '✔' : '✖'} ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`)
}
if (failures.length > 0) fail(`failed: ${failures.join(', ')}`)
