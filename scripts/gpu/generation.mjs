// node scripts/gpu/generation.mjs LINES [COMMIT]: what `scripts/gpu/run.sh generation LINES` measured becomes
// benches/results/generation-h100.json, the charts in docs/ and, printed, the tables of docs/gpu.md. Without LINES charts
// and tables are made from the committed results. Of another card a file of its own, and the tables.
import { readFileSync, writeFileSync } from 'node:fs'
import { chart, measured, table } from './report.mjs'

const [lines, commit] = process.argv.slice(2)
const measurement = lines && measured(readFileSync(lines, 'utf8'), commit)
const card = measurement ? /[A-Z]+\d+/.exec(measurement.machine.card)[0].toLowerCase() : 'h100'
const results = `benches/results/generation-${card}.json`

/** d_model, layers, vocabulary. */
const shapes = {
  '130m': [768, 24, 50280],
  '370m': [1024, 48, 50280],
  '1.4b': [2048, 48, 50280],
  '2.8b': [2560, 64, 50280],
  '7b': [4096, 64, 65024],
}
/** Quoted, not measured here: the official mamba_ssm 2.3.2.post1, f16, on the same kind of card. */
const official = {
  decode: {
    '130m': { 1: 0.691, 64: 0.867 },
    '1.4b': { 1: 2.31, 16: 2.58, 64: 3.21, 128: 3.88 },
    '2.8b': { 1: 3.81, 64: 5.12 },
  },
  prefill: { '130m': 31, '1.4b': 63, '2.8b': 91 },
  throughput: {
    '130m': { 1: 1047, 64: 32811 },
    '1.4b': { 1: 352, 16: 3496, 64: 5682, 128: 6269 },
    '2.8b': { 64: 3148 },
  },
}
/** Quoted likewise: GPT-NeoX of 1.4b in transformers, tokens/s by batch. */
const transformer = { 1: 52, 16: 728 }
/** Of our scan at its best (docs/kernels.md). */
const scanRate = 140e9

if (measurement) {
  const { machine, origin, rows } = measurement
  const file = {
    ...origin,
    f16_tflops: machine.f16_tflops,
    bf16_tflops: machine.bf16_tflops,
    method:
      'scripts/gpu/run.sh generation (crates/mamba/examples/generation): whole requests through the engine, greedy, ' +
      'random weights; decode is the time from the first token of the last sequence to its last, over the steps, ' +
      'median of three rounds; throughput is the better of two rounds, tokens generated over all the time',
    ...(card === 'h100' && {
      official: 'quoted from the project that measured it on the same kind of card: ms, tokens/s',
    }),
    rows: rows.map((row) => withFloor(row, machine)),
  }
  const text = JSON.stringify(file, null, 2)
  // A row a line.
  writeFileSync(
    results,
    text.replace(/\{\n {6}[\s\S]*?\n {4}\}/g, (row) => JSON.stringify(JSON.parse(row))) + '\n',
  )
}

function withFloor(row, machine) {
  const { what, shape, batch } = row
  const [model, layers, vocabulary] = shapes[shape] ?? []
  const step = (row.weight_bytes + 2 * row.state_bytes * batch) / (machine.copy_tb_s * 1e9)
  const rank = Math.ceil(model / 16)
  const matrices = layers * (6 * model * model + 2 * model * (rank + 32) + 2 * model * rank)
  const prompt = (tokens) =>
    ((2 * matrices * tokens) / (machine.f16_tflops * 1e12) + (layers * tokens * 2 * model) / scanRate) * 1e3
  const beside = (floor, ours, theirs) => ({
    ...row,
    floor,
    of_floor: ours / floor,
    ...(theirs && card === 'h100' && { official: theirs }),
  })
  if (what === 'decode') return beside(step, row.ms, official.decode[shape]?.[batch])
  if (what === 'prefill 2048') return beside(prompt(2048), row.ms, official.prefill[shape])
  if (what === 'prompt 2048, generate 128') {
    const floor = prompt(2048 * batch) + 128 * step
    const theirs = official.throughput[shape]?.[batch]
    const seconds = Math.min(...row.seconds)
    return {
      ...beside(floor, seconds * 1e3, theirs),
      ...(theirs && card === 'h100' && { of_official: row.tokens_s / theirs }),
      ...(card === 'h100' && shape === '1.4b' && transformer[batch] && { transformer: transformer[batch] }),
    }
  }
  if (what.startsWith('embed')) {
    const peak = row.dtype === 'f16' ? machine.f16_tflops : machine.bf16_tflops
    return { ...row, of_peak: row.product_tflops / peak, vocabulary }
  }
  return row
}

const file = JSON.parse(readFileSync(results, 'utf8'))
const rowsOf = (what) => file.rows.filter((row) => row.what === what)
const round = (x, digits = 3) =>
  x === undefined ? '' : Number(x.toPrecision(digits)).toLocaleString('en-US')

table(
  ['model', 'batch', 'step, ms', 'floor, ms', '× floor', 'tokens/s', 'official, ms'],
  rowsOf('decode').map((row) => [
    row.shape,
    row.batch,
    round(row.ms),
    round(row.floor),
    round(row.of_floor),
    round((row.batch / row.ms) * 1e3),
    round(row.official),
  ]),
)
table(
  ['model', 'prompt of 2048, ms', 'floor, ms', '× floor', 'official, ms'],
  rowsOf('prefill 2048').map((row) => [
    row.shape,
    round(row.ms),
    round(row.floor),
    round(row.of_floor),
    round(row.official),
  ]),
)
table(
  ['model', 'batch', 'tokens/s', 'floor, s', '× floor', 'official', '× official', 'Transformer'],
  rowsOf('prompt 2048, generate 128').map((row) => [
    row.shape,
    row.batch,
    round(row.tokens_s, 4),
    round(row.floor / 1e3),
    round(row.of_floor),
    round(row.official, 6),
    round(row.of_official),
    round(row.transformer),
  ]),
)
const loads = file.rows.filter((row) => row.what.startsWith('load, '))
table(
  [
    'model',
    'load',
    'requests/s',
    'tokens/s',
    'first token, ms p50 / p99',
    'between tokens, ms p50 / p99',
    'cores',
  ],
  loads.map((row) => [
    row.shape,
    row.what.slice(6),
    round(row.requests_s),
    round(row.tokens_s),
    `${round(row.first_token_ms_p50)} / ${round(row.first_token_ms_p99)}`,
    `${round(row.between_tokens_ms_p50)} / ${round(row.between_tokens_ms_p99)}`,
    round(row.cpu_cores, 2),
  ]),
)
table(
  ['model', 'texts', 'texts/s', 'tokens/s', 'of the matrix peak', 'cores'],
  file.rows
    .filter((row) => row.what.startsWith('embed'))
    .map((row) => [
      row.shape,
      row.what.slice(6),
      round(row.texts_s),
      round(row.tokens_s),
      `${round(row.of_peak * 100, 2)} %`,
      round(row.cpu_cores, 2),
    ]),
)

if (card !== 'h100') process.exit()

const names = [...new Set(rowsOf('decode').map((row) => row.shape))]
writeFileSync(
  'docs/gpu-throughput.svg',
  chart({
    title: `Tokens a second of decoding, f16, ${file.card}`,
    x: 'sequences at once',
    y: 'tokens/s',
    ticks: [1, 2, 4, 8, 16, 32, 64, 128, 256],
    series: names.map((shape) => ({
      name: shape,
      points: rowsOf('decode')
        .filter((row) => row.shape === shape)
        .map((row) => [row.batch, (row.batch / row.ms) * 1e3]),
    })),
  }),
)
const percentages = loads.filter((row) => /\d+ %/.test(row.what))
const loaded = [...new Set(percentages.map((row) => row.shape))]
const latency = (of, name, dashed) =>
  loaded.map((shape, i) => ({
    name: `${shape} ${name}`,
    colour: i,
    dashed,
    points: percentages
      .filter((row) => row.shape === shape)
      .map((row) => [Number.parseInt(row.what.slice(6), 10), row[of]]),
  }))
for (const [what, key] of [
  ['first token', 'first_token_ms'],
  ['token to token', 'between_tokens_ms'],
])
  writeFileSync(
    `docs/gpu-latency-${key.split('_')[0]}.svg`,
    chart({
      title: `Milliseconds to the ${what === 'first token' ? 'first token' : 'next token'}, f16, ${file.card}`,
      x: 'load, % of capacity',
      y: 'ms',
      ticks: [...new Set(percentages.map((row) => Number.parseInt(row.what.slice(6), 10)))],
      series: [...latency(`${key}_p50`, 'p50', false), ...latency(`${key}_p99`, 'p99', true)],
    }),
  )
