// node scripts/gpu/generation.mjs LINES [COMMIT]: what `scripts/gpu/run.sh generation LINES` measured becomes
// benches/results/generation-h100.json, the charts in docs/ and, printed, the tables of docs/gpu.md. Without LINES charts
// and tables are made from the committed results.
import { readFileSync, writeFileSync } from 'node:fs'

const results = 'benches/results/generation-h100.json'
const [lines, commit] = process.argv.slice(2)

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

if (lines) {
  const rows = readFileSync(lines, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line))
  const machine = rows.find((row) => row.what === 'machine')
  const file = {
    date: new Date().toISOString().slice(0, 10),
    commit: commit ?? '',
    card: machine.card,
    driver: machine.driver,
    copy_tb_s: machine.copy_tb_s,
    f16_tflops: machine.f16_tflops,
    bf16_tflops: machine.bf16_tflops,
    method:
      'scripts/gpu/run.sh generation (crates/mamba/examples/generation): whole requests through the engine, greedy, ' +
      'random weights; decode is the time from the first token of the last sequence to its last, over the steps, ' +
      'median of three rounds; throughput is the better of two rounds, tokens generated over all the time',
    official: 'quoted from the project that measured it on the same kind of card: ms, tokens/s',
    rows: rows.filter((row) => row.what !== 'machine').map((row) => withFloor(row, machine)),
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
    ...(theirs && { official: theirs }),
  })
  if (what === 'decode') return beside(step, row.ms, official.decode[shape]?.[batch])
  if (what === 'prefill 2048') return beside(prompt(2048), row.ms, official.prefill[shape])
  if (what === 'prompt 2048, generate 128') {
    const floor = prompt(2048 * batch) + 128 * step
    const theirs = official.throughput[shape]?.[batch]
    const seconds = Math.min(...row.seconds)
    return {
      ...beside(floor, seconds * 1e3, theirs),
      ...(theirs && { of_official: row.tokens_s / theirs }),
      ...(shape === '1.4b' && transformer[batch] && { transformer: transformer[batch] }),
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

function table(head, rows) {
  console.log(`\n| ${head.join(' | ')} |\n|${head.map(() => '---|').join('')}`)
  for (const row of rows) console.log(`| ${row.join(' | ')} |`)
}

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

/** Lines over logarithmic axes as SVG: series are `{ name, points: [[x, y], …], dashed }`. */
function chart({ title, x, y, series, ticks }) {
  const [width, height, left, top, right, bottom] = [720, 420, 70, 40, 130, 50]
  const colours = ['#1b6ca8', '#d1495b', '#2e8540', '#8a5a00', '#6a3d9a', '#555']
  const all = series.flatMap((one) => one.points)
  const range = (values) => [Math.log(Math.min(...values)), Math.log(Math.max(...values))]
  const [[x0, x1], [y0, y1]] = [range(all.map(([x]) => x)), range(all.map(([, y]) => y))]
  const atX = (v) => left + ((Math.log(v) - x0) / (x1 - x0 || 1)) * (width - left - right)
  const atY = (v) => height - bottom - ((Math.log(v) - y0) / (y1 - y0 || 1)) * (height - top - bottom)
  const parts = []
  const text = (x, y, content, more = '') =>
    parts.push(`<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${content}</text>`)
  text(left, 24, title, 'font-size="15" font-weight="bold"')
  for (const tick of ticks) {
    parts.push(`<path d="M${atX(tick).toFixed(1)} ${top}V${height - bottom}" stroke="#ddd"/>`)
    text(atX(tick), height - bottom + 18, tick, 'text-anchor="middle"')
  }
  for (let power = Math.ceil(y0 / Math.LN10); power <= y1 / Math.LN10; power++) {
    const value = 10 ** power
    parts.push(`<path d="M${left} ${atY(value).toFixed(1)}H${width - right}" stroke="#ddd"/>`)
    text(left - 8, atY(value) + 4, value.toLocaleString('en-US'), 'text-anchor="end"')
  }
  text((left + width - right) / 2, height - 12, x, 'text-anchor="middle"')
  text(0, 0, y, `text-anchor="middle" transform="translate(16 ${(top + height - bottom) / 2}) rotate(-90)"`)
  // Names at the lines' ends, moved apart where they would overlap.
  let lowest = Infinity
  const ends = series
    .map((one, i) => ({
      ...one,
      colour: colours[(one.colour ?? i) % colours.length],
      end: one.points.at(-1),
    }))
    .toSorted((a, b) => a.end[1] - b.end[1])
  for (const { name, points, dashed, colour, end } of ends) {
    const path = points.map(([x, y]) => `${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`).join('L')
    const dash = dashed ? ' stroke-dasharray="5 4"' : ''
    parts.push(`<path d="M${path}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>`)
    for (const [x, y] of points)
      parts.push(`<circle cx="${atX(x).toFixed(1)}" cy="${atY(y).toFixed(1)}" r="3" fill="${colour}"/>`)
    lowest = Math.min(atY(end[1]) + 4, lowest - 15)
    text(atX(end[0]) + 8, lowest, name, `fill="${colour}"`)
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12"><rect width="${width}" height="${height}" fill="#fff"/>${parts.join('\n')}</svg>\n`
}

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
