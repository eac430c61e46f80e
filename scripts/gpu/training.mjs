// node scripts/gpu/training.mjs STEPS NOVELS [COMMIT]: what `scripts/gpu/run.sh training STEPS` and `run.sh novels NOVELS`
// left in their folders becomes benches/results/training-<card>.json, docs/training-novels.svg and, printed, the tables of
// docs/training.md. Without folders the chart and the tables are made from the committed results: with the card alone.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { chart, measured, table } from './report.mjs'

const json = (path) => JSON.parse(readFileSync(path, 'utf8'))
const [first, novels, commit] = process.argv.slice(2)
const resultsOf = (card) => `benches/results/training-${card}.json`

/** The time of each kernel in a profile, µs a step, templates and lengths of cuBLAS's tiles left out; longest first. */
function kernels(csv) {
  const lines = csv.split('\n').filter((line) => line.startsWith('"'))
  const rows = lines.map((line) => line.slice(1, -1).split('","'))
  const [name, time] = ['Kernel Name', 'gpu__time_duration.sum'].map((column) => rows[0].indexOf(column))
  if (rows[1][time] !== 'ns') throw new Error(`times in ${rows[1][time]}`)
  const kinds = new Map()
  for (const row of rows.slice(2)) {
    const kernel = row[name].replace(/[<(].*/, '').replace(/^void /, '')
    const kind = /nvjet|cublas|gemm/.test(kernel) ? 'products (cuBLAS)' : kernel
    const sum = kinds.get(kind) ?? { kernel: kind, launches: 0, us: 0 }
    sum.launches += 1
    sum.us += Number(row[time].replaceAll(',', '')) / 1e3
    kinds.set(kind, sum)
  }
  // A warm-up step and those that were asked for; what a model's making launches is not among them.
  const steps = kinds.get('gradient_norm').launches
  return [...kinds.values()]
    .filter(({ launches }) => launches >= steps)
    .map(({ kernel, launches, us }) => ({ kernel, launches: launches / steps, us: us / steps }))
    .toSorted((a, b) => b.us - a.us)
}

let card = first
if (novels) {
  const { machine, origin, rows } = measured(readFileSync(`${first}/steps.jsonl`, 'utf8'), commit)
  card = machine.card.split(' ')[1].toLowerCase()
  const profile = `${first}/kernels.csv`
  const runs = readdirSync(novels).map((run) => {
    const { log, ...summary } = json(`${novels}/${run}/log.json`)
    const { train_loss, validation_loss } = json(`${novels}/${run}/evaluation.json`)
    return { run, ...summary, train_loss, validation_loss, log }
  })
  const file = {
    ...origin,
    bf16_tflops: machine.bf16_tflops,
    steps: rows,
    kernels: existsSync(profile) ? kernels(readFileSync(profile, 'utf8')) : [],
    novels: runs,
  }
  writeFileSync(resultsOf(card), JSON.stringify(file, null, 1) + '\n')
}

const file = json(resultsOf(card))
const official = json('crates/mamba/tests/reference/novels-7m-training.json')
table(
  ['shape', 'sequences × tokens', 'tokens/s', 'ms a step', 'GiB'],
  file.steps.map((row) => [
    row.shape,
    `${row.sequences} × ${row.length}`,
    Math.round(row.tokens_per_second).toLocaleString('en-US'),
    row.ms_per_step.toFixed(1),
    row.memory_gib.toFixed(1),
  ]),
)
const all = file.kernels.reduce((sum, { us }) => sum + us, 0)
if (file.kernels.length > 0)
  table(
    ['kernel', 'launches', 'ms', 'of all'],
    file.kernels
      .filter(({ us }) => us > all / 200)
      .map(({ kernel, launches, us }) => [
        `\`${kernel}\``,
        Math.round(launches),
        (us / 1e3).toFixed(2),
        `${((100 * us) / all).toFixed(1)} %`,
      ]),
  )
/** How far the losses of batches lie from the official run's at the same step, on average. */
const apart = (log) => {
  const pairs = official.log.map(([step, , loss]) => [loss, log.find((entry) => entry[0] === step)[2]])
  return pairs.reduce((sum, [a, b]) => sum + Math.abs(a - b), 0) / pairs.length
}
table(
  ['run', 'training loss', 'validation loss', 'batches apart from the official'],
  file.novels.map((run) => [
    run.run,
    run.train_loss.toFixed(4),
    run.validation_loss.toFixed(4),
    apart(run.log).toFixed(4),
  ]),
)
const curve = (log) => log.filter(([step]) => step >= 500).map(([step, , , loss]) => [step, loss])
writeFileSync(
  'docs/training-novels.svg',
  chart({
    title: 'Validation loss of the default model’s recipe, 285 million tokens',
    x: 'step',
    y: 'nats a token',
    ticks: [1000, 2000, 3000, 4000, 5000],
    linear: [3.7, 3.75, 3.8, 3.85, 3.9, 3.95, 4],
    series: [
      ...file.novels.map(({ run, log }) => ({
        name: run.replace(/.*-official$/, 'node-mamba'),
        points: curve(log),
      })),
      { name: 'official', points: curve(official.log), dashed: true, colour: 5 },
    ],
  }),
)
