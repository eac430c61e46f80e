// node benches/llama-cpp.mjs --data FOLDER: our CPU path beside llama.cpp, the same random weights, machine, types and
// threads, taking turns measurement by measurement, into benches/results/cpu-vs-llama-cpp-amx.json (or what the best
// instruction set is), and a table of ratios beside the required ones. benches/README.md tells what is measured and what
// FOLDER holds. Options, with defaults:
//   --shape 130m,370m --types f32,bf16,f16,q8_0,q4_k --threads 2,1 --rounds 3 --quick
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { parseArgs } from 'node:util'

import { Contestant } from './llama-cpp/contestant.mjs'
import { quiet } from './llama-cpp/load.mjs'
import { cache, setupNode, setupPython } from './llama-cpp/setup.mjs'
import { flopsPerToken, required, summary, table } from './llama-cpp/table.mjs'

const { values: options } = parseArgs({
  options: {
    data: { type: 'string', default: process.env.NODE_MAMBA_DATA },
    shape: { type: 'string', default: '130m,370m' },
    types: { type: 'string', default: 'f32,bf16,f16,q8_0,q4_k' },
    threads: { type: 'string', default: '2,1' },
    rounds: { type: 'string', default: '3' },
    quick: { type: 'boolean', default: false },
  },
})
if (options.quick) {
  Object.assign(options, { shape: '130m', types: 'f32,q8_0', threads: '2', rounds: '1' })
}
const shapes = options.shape.split(',')
const types = options.types.split(',')
const threadCounts = options.threads.split(',').map(Number)
const rounds = Number(options.rounds)
const cpuinfo = existsSync('/proc/cpuinfo') ? readFileSync('/proc/cpuinfo', 'utf8') : ''
const flags = (/flags\s*:\s*(.*)/.exec(cpuinfo)?.[1] ?? '')
  .split(' ')
  .filter((flag) => /avx|amx|fma|f16c/.test(flag))
const target = options.quick ? `${cache}/quick.json` : `benches/results/cpu-vs-llama-cpp-${bestLevel()}.json`

const output = (command, args) => execFileSync(command, args, { encoding: 'utf8' }).trim()
const best = (numbers) => Math.max(...numbers)
const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]
/** The share of the cores that others took in the calmest round of each side, the larger of the two. */
const calmest = ({ ours, theirs }) =>
  Number(Math.max(Math.min(...ours), theirs.length > 0 ? Math.min(...theirs) : 0).toFixed(2))
const figures = (numbers) => ({ best: best(numbers), median: median(numbers), rounds: numbers })

// What both need.
execFileSync('cargo', ['build', '--release', '-p', 'mamba', '--examples'], { stdio: 'inherit' })
const example = (name) => `target/release/examples/${name}`
const python = setupPython()
const node = setupNode()
// A current OpenBLAS knows the processor better than these, which are there for older ones.
delete process.env.OPENBLAS_CORETYPE
delete process.env.OPENBLAS_L2_SIZE

const tokenizer = options.data && `${options.data}/gpt-neox-20b/tokenizer.json`
const sts = options.data && `${options.data}/stsbenchmark/sts-test.csv`
const texts = sts ? writeTexts() : null
if (!texts) console.log('no --data: no tokenizer and no texts, so embeddings are left out')

/** The first 32 sentences of the STS benchmark's test set, and 32 texts of eight of its sentences each. */
function writeTexts() {
  const lines = readFileSync(sts, 'utf8').trimEnd().split('\n')
  const sentences = lines.flatMap((line) => line.split('\t').slice(5, 7))
  const long = Array.from({ length: 32 }, (_, i) => sentences.slice(8 * i, 8 * i + 8).join(' '))
  mkdirSync(cache, { recursive: true })
  writeFileSync(`${cache}/short.txt`, `${sentences.slice(0, 32).join('\n')}\n`)
  writeFileSync(`${cache}/long.txt`, `${long.join('\n')}\n`)
  return { short: `${cache}/short.txt`, long: `${cache}/long.txt` }
}

/** What is measured: a name, the line that asks for it, who takes part, and in how many rounds. */
function measurements(shape, threads) {
  // Where a step takes long, fewer of them say the same.
  const steps = Math.ceil((shape === '130m' ? 32 : 16) / (options.quick ? 4 : 3 - Math.min(threads, 2)))
  const list = [
    { name: 'prefill512', line: 'prefill 512' },
    { name: 'decode1', line: 'decode 1 64' },
    { name: 'decode32', line: `decode 32 ${steps}` },
    { name: 'prefill2048', line: 'prefill 2048', oursOnly: true, rounds: 2 },
  ]
  if (texts) list.push({ name: 'embedShort', line: `embed ${texts.short}` })
  if (texts && threads > 1) list.push({ name: 'embedLong', line: `embed ${texts.long}`, rounds: 2 })
  if (shape === '130m' && threads > 1 && !options.quick) {
    list.push({ name: 'prefill32768', line: 'prefill 32768', oursOnly: true, rounds: 1 })
  }
  return list
}

/** Writes the weights and the GGUFs; how far llama.cpp's f32 results are ours. */
function prepare(shape) {
  const folder = `${cache}/${shape}`
  console.log(`${shape}: weights and GGUFs`)
  execFileSync(example('speed'), [shape, 'f32', '2', '--save', folder], { stdio: 'inherit' })
  const vocabulary = existsSync(tokenizer ?? '') ? tokenizer : '-'
  execFileSync(python.interpreter, ['benches/llama-cpp/convert.py', folder, vocabulary, ...types], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const agreement = JSON.parse(
    output(python.interpreter, ['benches/llama-cpp/peer.py', `${folder}/f32.gguf`, '2', folder]),
  )
  console.log(agreement)
  if (agreement.logitsRelativeError > 1e-4)
    throw new Error(`not the same model: delete ${folder} and run again`)
  return agreement
}

/** What the machine can do at so many threads: products in GFLOP/s, by type. */
async function gemm(threads) {
  await quiet(30_000)
  const products = output(example('products'), [String(threads), bestLevel()])
  const ours = {}
  for (const [, type, gflops] of products.matchAll(/^\S+ +(\w+) +\d+ x \d+ +512 +([\d.]+)/gm)) {
    ours[type] = Math.max(ours[type] ?? 0, Number(gflops))
  }
  await quiet(30_000)
  const openblas = JSON.parse(output(python.interpreter, ['benches/llama-cpp/gemm.py', String(threads)]))
  return { ours, openblasF32: openblas }
}

function bestLevel() {
  if (flags.includes('amx_tile')) return 'amx'
  if (flags.includes('avx512_vnni')) return 'avx512_vnni'
  if (flags.includes('avx512f')) return 'avx512'
  return flags.includes('avx2') ? 'avx2' : 'portable'
}

/** GB/s of reading so many bytes, the better of two tries. */
async function bandwidth(threads, bytes) {
  const tries = []
  for (let i = 0; i < 2; i++) {
    await quiet(10_000)
    tries.push(JSON.parse(output(example('bandwidth'), [String(threads), String(bytes)])).best)
  }
  return best(tries)
}

async function compare(shape, type, threads) {
  const withTokenizer = tokenizer ? ['--tokenizer', tokenizer] : []
  const ours = await Contestant.start(example('speed'), [
    shape,
    type,
    String(threads),
    '--stdin',
    ...withTokenizer,
  ])
  if (!ours) return console.log(`${type} is left out: the speed example does not know it`)
  const theirs = await Contestant.start(python.interpreter, [
    'benches/llama-cpp/peer.py',
    `${cache}/${shape}/${type}.gguf`,
    String(threads),
  ])
  record.llamaCpp.system ??= theirs.info.system
  const list = measurements(shape, threads)
  const results = new Map(
    list.map(({ name }) => [name, { ours: [], theirs: [], others: { ours: [], theirs: [] } }]),
  )
  const per = (name) => (name.startsWith('embed') ? 'textsPerSecond' : 'tokensPerSecond')
  // The first use of anything (pages, contexts, threads) is not measured.
  for (const contestant of [theirs, ours]) {
    for (const line of ['prefill 512', 'decode 1 4', 'decode 32 2']) await contestant.ask(line)
    if (texts) await contestant.ask(`embed ${texts.short}`)
  }
  for (let round = 0; round < rounds; round++) {
    for (const { name, line, oursOnly, rounds: only = rounds } of list) {
      if (round >= only) continue
      const result = results.get(name)
      if (!oursOnly) {
        const answer = await theirs.measure(line)
        result.others.theirs.push(answer.others)
        result.theirs.push(answer[per(name)])
        result.theirTokens = answer.tokens
      }
      const answer = await ours.measure(line)
      result.others.ours.push(answer.others)
      result.ours.push(answer[per(name)])
      result.tokens = answer.tokens
      if (name.startsWith('embed')) result.tokensPerText = answer.tokens / 32
    }
  }
  await Promise.all([ours.end(), theirs.end()])
  const readGBs = await bandwidth(threads, ours.info.weightBytes)
  for (const [name, result] of results) {
    const both = result.theirs.length > 0
    const row = { shape, type, threads, measure: name, others: calmest(result.others) }
    row.unit = name.startsWith('embed') ? 'texts/s' : 'tokens/s'
    if (result.tokensPerText) row.tokensPerText = result.tokensPerText
    if (both && result.tokens !== result.theirTokens) row.theirTokensPerText = result.theirTokens / 32
    row.ours = figures(result.ours)
    if (both) {
      row.theirs = figures(result.theirs)
      row.ratio = row.ours.best / row.theirs.best
      row.ratioOfMedians = row.ours.median / row.theirs.median
    }
    const flops = flopsPerToken(shape, name) * (result.tokensPerText ?? 1)
    const sequences = name === 'decode32' ? 32 : 1
    for (const who of both ? ['ours', 'theirs'] : ['ours']) {
      row[who].gflops = (row[who].best * flops) / 1e9
      const bytes = who === 'ours' ? ours.info.weightBytes : theirs.info.weightBytes
      if (name.startsWith('decode')) row[who].weightGBs = ((row[who].best / sequences) * bytes) / 1e9
    }
    row.machine = { gemmGflops: record.machine[threads].ours[type] ?? null, readGBs }
    row.required = required(row, flags)
    record.rows.push(row)
  }
  save()
  console.log(
    `${shape} ${type} ${threads} threads: ` +
      record.rows
        .slice(-list.length)
        .map(
          (row) =>
            `${row.measure} ${row.ours.best.toFixed(0)}${row.ratio ? ` (${row.ratio.toFixed(2)}x)` : ''}`,
        )
        .join(', '),
  )
}

/** node-llama-cpp's texts/s with all threads, for the types that its users take. */
async function measureNode(shape) {
  for (const type of ['f32', 'q8_0'].filter((type) => types.includes(type))) {
    const threads = Math.max(...threadCounts)
    const args = [node.module, `${cache}/${shape}/${type}.gguf`, String(threads)]
    const contestant = await Contestant.start(process.execPath, [
      'benches/llama-cpp/node-llama-cpp.mjs',
      ...args,
    ])
    if (!contestant) return console.log('node-llama-cpp is left out: it does not start')
    record.nodeLlamaCpp.system ??= contestant.info.system
    for (const [name, path] of [
      ['embedShort', texts.short],
      ['embedLong', texts.long],
    ]) {
      await contestant.ask(`embed ${texts.short}`)
      const answers = []
      for (let round = 0; round < Math.min(rounds, 2); round++)
        answers.push(await contestant.measure(`embed ${path}`))
      record.nodeLlamaCpp.rows.push({
        shape,
        type,
        threads,
        measure: name,
        unit: 'texts/s',
        tokensPerText: answers[0].tokens / 32,
        others: Number(best(answers.map(({ others }) => others)).toFixed(2)),
        ...figures(answers.map((answer) => answer.textsPerSecond)),
      })
    }
    await contestant.end()
  }
  save()
}

function save() {
  mkdirSync('benches/results', { recursive: true })
  record.summary = summary(record.rows, record.nodeLlamaCpp?.rows ?? [])
  record.minutes = Number(((performance.now() - began) / 60_000).toFixed(1))
  writeFileSync(target, `${JSON.stringify(record, null, 2)}\n`)
}

const began = performance.now()
const record = {
  date: new Date().toISOString(),
  commit: output('git', ['rev-parse', 'HEAD']),
  clean: output('git', ['status', '--porcelain']) === '',
  processor: cpus()[0].model,
  cores: cpus().length,
  flags,
  load: loadavg(),
  rustc: output('rustc', ['--version']),
  node: process.version,
  llamaCpp: {
    package: python.package,
    libraries: python.libraries,
    cmake: python.cmake,
    compiler: python.compiler,
  },
  nodeLlamaCpp: node && { package: node.package, rows: [] },
  options: { shapes, types, threads: threadCounts, rounds },
  agreement: {},
  machine: {},
  rows: [],
}
for (const threads of threadCounts) record.machine[threads] = await gemm(threads)
console.log(record.machine)
for (const shape of shapes) {
  record.agreement[shape] = prepare(shape)
  for (const threads of threadCounts) for (const type of types) await compare(shape, type, threads)
  if (node && texts) await measureNode(shape)
}
record.load = [record.load, loadavg()]
save()
console.log(`\n${table(record)}\n\n${target}, ${record.minutes} minutes`)
