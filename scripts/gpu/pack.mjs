// node scripts/gpu/pack.mjs [folder]: what a machine with a GPU needs to check and time the CUDA backend, without Rust or
// Node: the test programs, the timing program, the reference data and the default model, and run.sh. Default folder:
// .gpu/pack. It is built here, for glibc of this machine and later; NODE_MAMBA_CUDA_ARCHS=90 builds for Hopper alone.
// With NODE_MAMBA_NOVELS, a folder with corpus/ and val/ of the novels that the default model learned from, their tokens
// too (40 MB), for ./run.sh novels.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { fail, step } from '../steps.mjs'

const folder = process.argv[2] ?? '.gpu/pack'
rmSync(folder, { recursive: true, force: true })
mkdirSync(folder, { recursive: true })

/** Builds with `cargo <args>` and copies the program called `name`. */
function build(name, args) {
  step(`Building ${name}`, () => {
    const common = ['--release', '--locked', '-p', 'mamba', '--features', 'cuda']
    const { status, stdout } = spawnSync(
      'cargo',
      [...args, ...common, '--message-format=json-render-diagnostics'],
      { encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'inherit'] },
    )
    if (status) return status
    const messages = stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line))
    const artifact = messages.find((message) => message.executable && message.target.name === name)
    if (!artifact) fail(`cargo built no ${name}`)
    copyFileSync(artifact.executable, `${folder}/${name}`)
    return 0
  })
}

for (const test of ['cuda', 'cuda_lost']) build(test, ['test', '--no-run', '--test', test])
for (const example of ['speed', 'generation', 'train_speed', 'train_novels'])
  build(example, ['build', '--example', example])
for (const file of ['run.sh', 'official_start.py']) copyFileSync(`scripts/gpu/${file}`, `${folder}/${file}`)
writeFileSync(
  `${folder}/commit`,
  execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim(),
)
for (const data of ['crates/mamba/tests/reference', 'models/mamba-novels-7m'])
  cpSync(data, `${folder}/${data}`, { recursive: true })
const novels = process.env.NODE_MAMBA_NOVELS
if (novels) {
  step('Making tokens of the novels', () => {
    const tokens = ['corpus', 'val'].map((part) => [
      'tokens',
      `${novels}/${part}`,
      'models/mamba-novels-7m/tokenizer.json',
      `${folder}/${part}.tokens`,
    ])
    const run = (args) => spawnSync(`${folder}/train_novels`, args, { stdio: 'inherit' }).status
    return tokens.map(run).find((status) => status !== 0) ?? 0
  })
}
console.log(folder)
