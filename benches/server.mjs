// node --import=tsx benches/server.mjs: what serving costs over the library alone, with 32 streams at a time, and how long
// after a request its first byte comes. Into benches/results/server.json. Run it on a quiet machine; it takes 80
// seconds, with --quick 15 (the small model only, nothing is written). See benches/README.md.
import { spawn } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { Mamba } from '../dist/index.js'
import { randomTensors, writeConfig, writeSafetensors } from '../__test__/helpers/checkpoint.ts'
import { origin } from './record.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
process.chdir(root)
const STREAMS = 32
const TOKENS = 48
const FIRSTS = 15
// The 130m shape with the default model's tokenizer, so with its vocabulary: a token costs less, serving the same.
const shape = { d_model: 768, n_layer: 24, vocab_size: 8192 }
const prompt = 'It was a dark and stormy night, and the ship '.repeat(3)
// Every token is generated, none of them the end of text.
const body = (i, maxTokens, text = prompt) => ({
  model: 'bench',
  prompt: text,
  max_tokens: maxTokens,
  seed: i,
  stream: true,
  stream_options: { include_usage: true },
  logit_bias: { 0: -100 },
})

function checkpoint() {
  const folder = '.cache/server-bench'
  if (existsSync(`${folder}/model.safetensors`)) return folder
  mkdirSync(folder, { recursive: true })
  writeConfig(folder, shape)
  copyFileSync('models/mamba-novels-7m/tokenizer.json', `${folder}/tokenizer.json`)
  writeSafetensors(`${folder}/model.safetensors`, randomTensors(shape), 'BF16')
  return folder
}

/** Processor time of a process's main thread so far, on Linux. */
function mainThreadMicroseconds(pid) {
  const fields = readFileSync(`/proc/${pid}/task/${pid}/stat`, 'utf8').split(') ')[1].split(' ')
  return (Number(fields[11]) + Number(fields[12])) * 10_000 // utime and stime, in hundredths of a second
}

/** A client: one connection that stays open, one request at a time, and no more work than to read the answer. */
class Client {
  #socket
  #port

  constructor(port) {
    this.#port = port
    this.#socket = connect(port, '127.0.0.1')
    this.#socket.setNoDelay(true)
  }

  /** A request as it is sent. */
  request(body) {
    const text = JSON.stringify(body)
    const head = `POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:${this.#port}\r\nContent-Type: application/json\r\n`
    return Buffer.from(`${head}Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`)
  }

  /** Asks and reads everything; milliseconds to the first byte of the answer's body, and the answer as it came. */
  ask(request) {
    return new Promise((resolve, reject) => {
      const chunks = []
      let first = 0
      const start = performance.now()
      const read = (chunk) => {
        // Headers that came alone would not count.
        if (first === 0 && chunk.includes('data: ')) first = performance.now() - start
        chunks.push(chunk)
        if (first === 0 || !chunk.subarray(-5).equals(END)) return
        this.#socket.off('data', read).off('close', reject)
        resolve({ first, chunks })
      }
      this.#socket.on('data', read).once('close', reject)
      this.#socket.write(request)
    })
  }
}

/** What a chunked answer ends with. */
const END = Buffer.from('0\r\n\r\n')

/** The role of the clients' process: asks, reads everything, and says how long it took. */
function clients(port) {
  const all = Array.from({ length: STREAMS }, () => new Client(port))
  process.on('message', async ({ streams, tokens, text }) => {
    const asking = all.slice(0, streams)
    const requests = asking.map((client, i) => client.request(body(i, tokens, text)))
    const start = performance.now()
    const answers = await Promise.all(asking.map((client, i) => client.ask(requests[i])))
    const seconds = (performance.now() - start) / 1000
    for (const { chunks } of answers) {
      const answer = Buffer.concat(chunks).toString()
      const whole = answer.startsWith('HTTP/1.1 200') && answer.includes(`"completion_tokens":${tokens},`)
      if (!whole) throw new Error(answer)
    }
    process.send({ seconds, first: answers[0].first / 1000 })
  })
  process.send('ready')
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]

const next = (child) =>
  new Promise((resolve, reject) => {
    const ended = (code) => reject(new Error(`a process ended with ${code}`))
    child.once('exit', ended)
    child.once('message', (message) => {
      child.off('exit', ended)
      resolve(message)
    })
  })

async function measure(name, source, rounds) {
  const model = await Mamba.load(source)
  const server = spawn(
    process.execPath,
    ['dist/lib/cli/main.js', 'serve', '-m', `bench=${source}`, '--port', '0', '--json', '--no-playground'],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  const said = await new Promise((resolve) => server.stdout.once('data', resolve))
  const { port } = new URL(JSON.parse(said).url)
  const load = spawn(process.execPath, ['--import=tsx', 'benches/server.mjs', 'clients', port], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  await next(load)
  const ask = async (message) => {
    load.send(message)
    return next(load)
  }
  const options = (i, maxTokens) => ({ maxTokens, temperature: 1, seed: i, logitBias: { 0: -100 } })
  const library = async () => {
    const start = performance.now()
    const streams = Array.from({ length: STREAMS }, async (_, i) => {
      let text = ''
      for await (const token of model.generate(prompt, options(i, TOKENS))) text += token.text
      return text
    })
    await Promise.all(streams)
    return (STREAMS * TOKENS * 1000) / (performance.now() - start)
  }
  const served = async () => {
    const { seconds } = await ask({ streams: STREAMS, tokens: TOKENS, text: prompt })
    return (STREAMS * TOKENS) / seconds
  }
  await library()
  await served()
  const before = mainThreadMicroseconds(server.pid)
  const rates = { library: [], server: [] }
  for (let i = 0; i < rounds; i++) {
    // Taking turns at who begins.
    for (const who of i % 2 ? ['server', 'library'] : ['library', 'server']) {
      rates[who].push(Math.round(await { library, server: served }[who]()))
    }
  }
  const perToken = (mainThreadMicroseconds(server.pid) - before) / (rounds * STREAMS * TOKENS)
  const first = []
  for (const words of [8, 400]) {
    const text = 'The ship '.repeat(words / 2)
    const [prefill, byte] = [[], []]
    let promptTokens
    for (let i = 0; i < FIRSTS; i++) {
      const { usage } = await model.complete(text, options(i, 1))
      promptTokens = usage.promptTokens
      prefill.push(usage.prefillSeconds)
      byte.push((await ask({ streams: 1, tokens: 3, text })).first)
    }
    const ms = (values) => Number((median(values) * 1000).toFixed(2))
    first.push({
      promptTokens,
      prefillMs: ms(prefill),
      firstByteMs: ms(byte),
      ratio: Number((ms(byte) / ms(prefill)).toFixed(2)),
    })
  }
  server.kill('SIGTERM')
  load.kill()
  await model.dispose()
  const row = {
    model: name,
    parameters: model.parameters,
    dtype: model.dtype,
    threads: model.threads,
    tokensPerSecond: rates,
    // Of each round, whose two measurements share what else the machine does.
    serverOverLibrary: Number(median(rates.server.map((rate, i) => rate / rates.library[i])).toFixed(3)),
    // Of JavaScript and of writing to the sockets; the model computes on threads of its own.
    mainThreadMicrosecondsPerToken: Math.round(perToken),
    first,
  }
  console.log(JSON.stringify(row, null, 1))
  return row
}

if (process.argv[2] === 'clients') clients(Number(process.argv[3]))
else if (process.argv[2] === '--quick') {
  await measure('mamba-novels-7m', './models/mamba-novels-7m', 15)
  process.exit()
} else {
  const rows = [
    await measure('130m shape, vocabulary 8192, random weights', `./${checkpoint()}`, 11),
    await measure('mamba-novels-7m', './models/mamba-novels-7m', 15),
  ]
  const record = {
    ...origin(),
    load: loadavg()[0], // with the bench's own
    node: process.version,
    streams: STREAMS,
    tokens: TOKENS,
    rows,
  }
  writeFileSync('benches/results/server.json', `${JSON.stringify(record, null, 2)}\n`)
  process.exit()
}
