// node benches/embed-command.mjs [texts]: texts per second of `node-mamba embed`, file to file, against the library's
// own embedStream on the same texts with the vectors dropped; alternating, the median of the rounds, into
// benches/results/embed-command.json. Run it on a quiet machine, after npm run build.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Mamba } from '../dist/index.js'
import { origin } from './record.mjs'

const count = Number(process.argv[2] ?? 20_000)
const rounds = 5
const sentences = readFileSync('models/mamba-novels-7m/README.md', 'utf8').split(/\s+/)
/** Short texts, of 4 to 23 words. */
const texts = Array.from({ length: count }, (_, i) =>
  Array.from({ length: 4 + (i % 20) }, (_, j) => sentences[(i * 31 + j) % sentences.length]).join(' '),
)

const folder = mkdtempSync(join(tmpdir(), 'node-mamba-'))
const input = join(folder, 'texts.jsonl')
writeFileSync(input, texts.map((text) => `${JSON.stringify(text)}\n`).join(''))
const seconds = async (work) => {
  const start = performance.now()
  await work()
  return (performance.now() - start) / 1000
}
const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1]

const library = []
const command = []
for (let round = 0; round < rounds; round++) {
  const model = await Mamba.load()
  await model.embed(texts.slice(0, 64))
  const taken = await seconds(async () => {
    for await (const { vectors } of model.embedStream(texts))
      if (vectors.length === 0) throw new Error('empty')
  })
  await model.dispose()
  library.push(count / taken)
  // The whole of it: starting Node, loading the model, reading, computing, writing.
  const output = join(folder, `${round}.jsonl`)
  const args = ['dist/lib/cli/main.js', 'embed', input, '--output', output]
  command.push(count / (await seconds(() => execFileSync(process.execPath, args, { stdio: 'inherit' }))))
  console.log(`library ${library.at(-1).toFixed(0)}, command ${command.at(-1).toFixed(0)} texts/s`)
}
rmSync(folder, { recursive: true })

const record = {
  ...origin(),
  load: loadavg()[0], // with the bench's own
  node: process.version,
  texts: count,
  unit: 'texts/s',
  library: { median: median(library), rounds: library },
  command: { median: median(command), rounds: command },
  // Of each round, whose two measurements share what else the machine does.
  ratio: median(command.map((rate, i) => rate / library[i])),
}
writeFileSync('benches/results/embed-command.json', `${JSON.stringify(record, null, 2)}\n`)
console.log(`command / library: ${record.ratio.toFixed(3)}`)
