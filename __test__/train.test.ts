// Training from TypeScript: what a run reports and leaves, how it is stopped, killed and resumed, and what is refused.
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import {
  Mamba,
  mergeAdapter,
  train,
  trainSchema,
  type TrainEvent,
  type TrainExample,
  type TrainOptions,
  type TrainProgress,
} from 'node-mamba'
import { temporaryFolder } from './helpers/folder.js'
import { failure, modelFolder } from './helpers/model.js'

const soak = Boolean(process.env.NODE_MAMBA_SOAK)
const root = fileURLToPath(new URL('..', import.meta.url))
const text = fileURLToPath(new URL('./fixtures/room-with-a-view.txt', import.meta.url))

/** A small new model on real text; a step takes some milliseconds. */
function small(out: string, changes: Partial<TrainOptions> = {}): TrainOptions {
  return {
    out,
    config: { d_model: 32, n_layer: 2 },
    tokenizer: 'characters',
    data: text,
    batch: { size: 4, length: 64, order: 'windows' },
    optimizer: { lr: 1e-2 },
    steps: 20,
    checkpoint: { every: 5 },
    threads: 1,
    device: 'cpu',
    ...changes,
  }
}

async function steps(run: AsyncIterable<TrainProgress>): Promise<TrainProgress[]> {
  const all = []
  for await (const progress of run) all.push(progress)
  return all
}

const model = (out: string) => readFileSync(join(out, 'model/model.safetensors'))

test('a run reports every step and leaves a model that generates', async (t) => {
  const out = join(temporaryFolder(t), 'run')
  const events: TrainEvent[] = []
  const run = train(
    small(out, {
      validation: { fraction: 0.1, every: 10 },
      steps: 40,
      onEvent: (event) => events.push(event),
    }),
  )
  const all = await steps(run)
  t.deepEqual(
    all.map(({ step }) => step),
    Array.from({ length: 40 }, (_, i) => i + 1),
  )
  for (const progress of all) {
    t.is(progress.steps, 40)
    t.true(progress.loss! > 0 && progress.gradNorm! > 0 && progress.tokensPerSecond > 0)
    t.true(progress.etaSeconds >= 0 && progress.memoryBytes! > 1e6 && !progress.skipped)
    t.is(progress.validationLoss !== undefined, progress.step % 10 === 0)
  }
  // A character of English is predicted far better than by chance (ln of some 70 characters is 4.2).
  t.true(all[0]!.loss! > 3.5, `${all[0]!.loss}`)
  t.true(all.at(-1)!.validationLoss! < 2.9, `${all.at(-1)!.validationLoss}`)
  t.deepEqual(
    events.map((event) => event.type),
    ['started', ...Array.from({ length: 8 }, () => 'saved')],
  )
  const result = await run.result
  t.deepEqual(result.last, all.at(-1))
  t.true(readFileSync(result.curve, 'utf8').startsWith('<svg'))
  t.true(existsSync(join(result.huggingFace!, 'config.json')))
  const trained = await Mamba.load(result.model)
  try {
    t.is(trained.config.d_model, 32)
    t.is((await trained.complete('Lucy', { maxTokens: 8, ignoreEos: true })).tokens.length, 8)
    // What validation said, by another way: the loss of a text that begins as documents do.
    t.is(trained.tokenizer.encode('Lucy').length, 4)
  } finally {
    await trained.dispose()
  }
})

test('an aborted run resumes to the same bits, and so does one whose loop was left', async (t) => {
  const folder = temporaryFolder(t)
  const whole = join(folder, 'whole')
  // Enough that a run is not over while this thread waits for a busy processor.
  const count = 200
  await train(small(whole, { steps: count })).result
  const parts = join(folder, 'parts')
  const options = small(parts, { steps: count, resume: true })

  const stop = new AbortController()
  const aborted = train({ ...options, signal: stop.signal })
  const error = await t.throwsAsync(async () => {
    for await (const { step } of aborted) if (step === 3) stop.abort('enough')
  }, failure('ABORTED'))
  t.is(error!.cause, 'enough')
  await t.throwsAsync(aborted.result, failure('ABORTED'))

  let last = 0
  for await (const { step } of train(options)) {
    last = step
    if (step >= 8) break
  }
  t.true(last >= 8)
  const all = await steps(train(options))
  t.is(all.at(-1)!.step, count)
  t.true(all[0]!.step > 8)
  t.deepEqual(model(parts), model(whole))
  // Every step is written down once.
  const lines = readFileSync(join(parts, 'progress.jsonl'), 'utf8').trim().split('\n')
  t.deepEqual(
    lines.map((line) => (JSON.parse(line) as TrainProgress).step),
    Array.from({ length: count }, (_, i) => i + 1),
  )
})

test('killed at any moment, a run resumes, loses no more steps than a checkpoint is apart, and ends with the same bits', async (t) => {
  const folder = temporaryFolder(t)
  const every = 4
  const kills = soak ? 50 : 5
  const options = (out: string) =>
    small(out, {
      config: { d_model: 64, n_layer: 3 },
      batch: { size: 4, length: 128, order: 'documents' },
      steps: 40 * (kills / 5),
      checkpoint: { every },
      resume: true,
    })
  await train(options(join(folder, 'whole'))).result

  const out = join(folder, 'killed')
  /** Runs it in a process of its own, which is killed some time after a step of its own. */
  const run = (killAfter: number | undefined) =>
    new Promise<{ first: number; last: number; killed: boolean }>((resolve, reject) => {
      const script = `import { train } from './dist/index.js'
        const run = train({ ...${JSON.stringify(options(out))}, onEvent: (event) => event.type === 'started' && console.log(event.step) })
        for await (const { step } of run) console.log(step)
        await run.result`
      const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
        cwd: root,
        env: { ...process.env, NODE_OPTIONS: '' },
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      const seen: number[] = []
      child.stdout.setEncoding('utf8').on('data', (lines: string) => {
        seen.push(...lines.trim().split('\n').map(Number))
        if (killAfter !== undefined && seen.length > killAfter) {
          setTimeout(() => child.kill('SIGKILL'), Math.random() * 30)
        }
      })
      child.on('error', reject)
      child.on('close', (code, signal) => {
        if (code !== 0 && signal !== 'SIGKILL') return reject(new Error(`exit code ${code}`))
        resolve({ first: seen[0] ?? 0, last: seen.at(-1) ?? 0, killed: signal === 'SIGKILL' })
      })
    })
  let [reached, lost, killed] = [0, 0, 0]
  for (let i = 0; i < kills; i++) {
    const { first, last, killed: wasKilled } = await run(1 + Math.floor(Math.random() * 8))
    t.true(first >= reached - every, `it had come to step ${reached} and began again at ${first}`)
    lost = Math.max(lost, reached - first)
    reached = Math.max(last, first)
    killed += Number(wasKilled)
  }
  t.log(`${killed} times killed, at most ${lost} steps lost`)
  t.true(killed >= kills - 1)
  await run(undefined)
  t.deepEqual(model(out), model(join(folder, 'whole')))
})

test('texts and ids as they come are kept with the run, and not read again when it is resumed', async (t) => {
  const out = join(temporaryFolder(t), 'run')
  let asked = 0
  async function* texts() {
    asked++
    for (let i = 0; i < 50; i++)
      yield i % 5 === 0 ? [2, 3, 4, 5] : `Miss Bartlett said ${i} things about the view.`
  }
  const options = (): TrainOptions =>
    small(out, { data: texts(), resume: true, batch: { size: 2, length: 32 } })
  for await (const { step } of train(options())) if (step === 2) break
  t.is(asked, 1)
  t.is((await train(options()).result).last.step, 20)
  t.is(asked, 1)
  t.is(readFileSync(join(out, 'data.jsonl'), 'utf8').split('\n').length, 51)

  async function* wrong() {
    yield 'a text'
    yield 7 as unknown as string
  }
  const error = await t.throwsAsync(
    train(small(join(temporaryFolder(t), 'x'), { data: wrong() })).result,
    failure('INVALID_ARGUMENT'),
  )
  t.regex(error!.message, /example 1/)

  // Nor are they written over where only the checkpoints are there.
  renameSync(join(out, 'run.json'), join(out, 'aside.json'))
  await t.throwsAsync(train(options()).result, failure('RUN_INVALID', /run\.json.* missing.*step-00000020/s))
  t.is(asked, 1)
  renameSync(join(out, 'aside.json'), join(out, 'run.json'))

  // Without `resume` the run that is there is left alone.
  const kept = readFileSync(join(out, 'data.jsonl'))
  await t.throwsAsync(train({ ...options(), resume: false }).result, failure('RUN_INVALID', /already/))
  t.is(asked, 1)
  t.deepEqual(readFileSync(join(out, 'data.jsonl')), kept)
})

test('an abort does not wait for a source that gives nothing', async (t) => {
  const controller = new AbortController()
  async function* silent(): AsyncGenerator<TrainExample> {
    yield 'a text'
    controller.abort(new Error('enough'))
    await new Promise(() => {})
  }
  const options = small(join(temporaryFolder(t), 'run'), { data: silent(), signal: controller.signal })
  const error = await t.throwsAsync(train(options).result, failure('ABORTED'))
  t.is((error!.cause as Error).message, 'enough')
})

test('an adapter is trained, chosen by request, and merged', async (t) => {
  const folder = temporaryFolder(t)
  const { adapter, model: none } = await train({
    out: join(folder, 'run'),
    model: modelFolder,
    data: text,
    adapter: { kind: 'lora', rank: 4, targets: ['in_proj', 'out_proj'] },
    batch: { size: 1, length: 128 },
    optimizer: { lr: 1e-2, weightDecay: 0 },
    schedule: { decay: 'constant' },
    steps: 10,
    device: 'cpu',
  }).result
  t.is(none, undefined)
  t.deepEqual(readdirSync(adapter!).toSorted(), ['adapter_config.json', 'adapter_model.safetensors'])
  const config = JSON.parse(readFileSync(join(adapter!, 'adapter_config.json'), 'utf8')) as Record<
    string,
    unknown
  >
  t.like(config, { peft_type: 'LORA', r: 4, lora_alpha: 16, target_modules: ['in_proj', 'out_proj'] })

  const merged = join(folder, 'merged')
  await mergeAdapter('default', adapter!, merged)
  const both = await Mamba.load('default', { dtype: 'f32', device: 'cpu', adapters: { forster: adapter! } })
  const one = await Mamba.load(merged, { dtype: 'f32', device: 'cpu' })
  try {
    t.deepEqual(both.adapters, ['forster'])
    const sentence = 'It was the first morning of their stay in Florence.'
    const scores = [
      await both.score(sentence),
      await both.score(sentence, { adapter: 'forster' }),
      await one.score(sentence),
    ].map(({ meanNll }) => meanNll)
    t.true(Math.abs(scores[1]! - scores[2]!) < 1e-5 * scores[2]!, `${scores}`)
    t.true(Math.abs(scores[0]! - scores[1]!) > 1e-2, `${scores}`)
    const options = { maxTokens: 16, ignoreEos: true }
    const [plain, adapted, expected] = await Promise.all([
      both.complete('The room', options),
      both.complete('The room', { ...options, adapter: 'forster' }),
      one.complete('The room', options),
    ])
    t.deepEqual(adapted!.tokens, expected!.tokens)
    t.notDeepEqual(plain!.tokens, expected!.tokens)
    const vectors = await both.embed(['a view'], { adapter: 'forster' })
    t.notDeepEqual(vectors, await both.embed(['a view']))
    const error = await t.throwsAsync(both.complete('x', { adapter: 'bartlett' }), failure('OPTION_INVALID'))
    t.regex(error!.message, /`bartlett`, expected one of `forster`/)
  } finally {
    await Promise.all([both.dispose(), one.dispose()])
  }
})

test('an embedder and a classifier are trained from examples', async (t) => {
  const folder = temporaryFolder(t)
  const lines = (name: string, values: object[]) => {
    const file = join(folder, name)
    writeFileSync(file, values.map((value) => JSON.stringify(value)).join('\n'))
    return file
  }
  const places = ['Florence', 'London', 'Rome', 'Surrey', 'Paris', 'Athens', 'Venice', 'Bath']
  const pairs = places.map((place) => ({
    anchor: `a letter from ${place}`,
    positive: `the streets of ${place} in spring`,
    negatives: ['a bowl of soup'],
  }))
  const common = {
    model: modelFolder,
    batch: { size: 8, length: 32, tokens: 64 },
    steps: 12,
    optimizer: { lr: 1e-3 },
    device: 'cpu' as const,
  }
  const contrastive = await steps(
    train({
      ...common,
      out: join(folder, 'pairs'),
      data: lines('pairs.jsonl', pairs),
      objective: 'contrastive',
    }),
  )
  t.true(contrastive.at(-1)!.loss! < 0.5 * contrastive[0]!.loss!, `${contrastive.map(({ loss }) => loss)}`)

  const labelled = places.flatMap((place) => [
    { text: `I would so like to see ${place}!`, label: 'wish' },
    { text: `${place} was dull, and we left it.`, label: 'complaint' },
  ])
  const run = train({
    ...common,
    out: join(folder, 'labels'),
    data: lines('labels.jsonl', labelled),
    objective: { kind: 'classify', pooling: 'last' },
    validation: { fraction: 0.3 },
    steps: 20,
  })
  t.is((await steps(run)).at(-1)!.validationAccuracy, 1)
  const { classifier } = await run.result
  const about = JSON.parse(readFileSync(join(classifier!, 'classifier.json'), 'utf8')) as object
  t.like(about, { labels: ['complaint', 'wish'], pooling: 'last' })

  // Vectors as `embed` gives them.
  async function* vectors() {
    for (const [i, text] of places.entries())
      yield { text, vector: Float32Array.from({ length: 8 }, (_, j) => Math.cos(i * j + 1)) }
  }
  const distilled = await steps(
    train({
      ...common,
      out: join(folder, 'vectors'),
      data: vectors(),
      objective: { kind: 'distill', loss: 'cosine' },
      steps: 30,
    }),
  )
  t.true(distilled.at(-1)!.loss! < 0.3 * distilled[0]!.loss!, `${distilled.map(({ loss }) => loss)}`)
})

test('what is wrong is named, by its path', async (t) => {
  const folder = temporaryFolder(t)
  const bad = async (changes: object, code: Parameters<typeof failure>[0], message: RegExp) => {
    const out = join(folder, `run${Math.random()}`)
    await t.throwsAsync(train({ ...small(out), ...changes } as TrainOptions).result, failure(code, message))
    t.false(existsSync(join(out, 'run.json')))
  }
  const empty = join(folder, 'empty.txt')
  writeFileSync(empty, '')
  await bad({ optimizer: { learningRat: 1 } }, 'OPTION_INVALID', /no option `optimizer\.learningRat`/)
  await bad({ optimiser: {} }, 'OPTION_INVALID', /`optimiser`; did you mean `optimizer`\?/)
  await bad({ batch: { sizes: 3 } }, 'OPTION_INVALID', /`batch\.sizes`; did you mean `batch\.size`\?/)
  await bad({ optimizer: { lr: '1e-3' } }, 'OPTION_INVALID', /`optimizer\.lr` is '1e-3', expected a number/)
  await bad({ steps: 0 }, 'OPTION_INVALID', /`steps` is 0, expected an integer from 1/)
  await bad({ steps: undefined }, 'OPTION_INVALID', /`steps` is undefined/)
  await bad(
    { objective: 'casual-lm' },
    'OPTION_INVALID',
    /`objective` is 'casual-lm', expected 'causal-lm' or/,
  )
  await bad({ objective: { kind: 'classify', loss: 'mse' } }, 'OPTION_INVALID', /`objective\.loss`/)
  await bad({ adapter: { kind: 'state', rank: 3 } }, 'OPTION_INVALID', /`adapter\.rank`/)
  await bad(
    { adapter: { kind: 'lora', targets: ['in_proj', 'q_proj'] } },
    'OPTION_INVALID',
    /`adapter\.targets\[1\]`/,
  )
  await bad({ model: 'default' }, 'OPTION_INVALID', /`config`/)
  await bad({ signal: 7 }, 'OPTION_INVALID', /`signal`/)
  await bad({ onEvent: 7 }, 'OPTION_INVALID', /`onEvent`/)
  await bad({ data: { files: [text], formt: 'text' } }, 'OPTION_INVALID', /did you mean `data\.format`/)
  await bad({ data: empty }, 'DATA_EMPTY', /empty\.txt|the texts/)
  await bad({ data: join(folder, 'none.txt') }, 'FILE_NOT_FOUND', /none\.txt/)
  await bad({ precision: 'bf16' }, 'OPTION_INVALID', /`precision`/)
  await bad({ config: { d_model: 32, n_layer: 2, ssm_cfg: { d_state: 0 } } }, 'CONFIG_INVALID', /d_state/)
  await t.throwsAsync(train(undefined as unknown as TrainOptions).result, failure('INVALID_ARGUMENT'))
  await t.throwsAsync(Mamba.load('default', { adapters: [] as never }), failure('OPTION_INVALID'))
  await t.throwsAsync(Mamba.load('default', { adapters: { x: folder } }), failure('FILE_NOT_FOUND'))

  // A run in the way, and one that is resumed with other settings.
  const out = join(folder, 'there')
  await train(small(out)).result
  await t.throwsAsync(train(small(out)).result, failure('RUN_INVALID', /resume/))
  const other = train(small(out, { resume: true, optimizer: { lr: 2e-2 } })).result
  await t.throwsAsync(other, failure('RUN_MISMATCH', /`optimizer\.lr` is 0\.02, expected 0\.01/))
})

test('bad data are named, of every kind', async (t) => {
  const folder = temporaryFolder(t)
  const ids = { config: { d_model: 32, n_layer: 2, vocab_size: 300 }, tokenizer: undefined }
  const novels = { config: { d_model: 32, n_layer: 2 }, tokenizer: join(modelFolder, 'tokenizer.json') }
  const file = (name: string, content: string | Uint8Array) => {
    writeFileSync(join(folder, name), content)
    return join(folder, name)
  }
  async function* iterable(...examples: unknown[]) {
    yield* examples as TrainExample[]
  }
  async function* broken() {
    yield 'a text'
    throw new RangeError('the source is gone')
  }
  const cases: [object, Parameters<typeof failure>[0], RegExp][] = [
    [{ data: file('empty.fa', '') }, 'DATA_EMPTY', /empty\.fa|no /],
    [{ data: file('name.fa', '>chr1\nACGT\nAC1T\n') }, 'DATA_INVALID', /name\.fa.*3/s],
    [{ data: file('noise.wav', 'no RIFF at all'), ...ids }, 'DATA_INVALID', /noise\.wav/],
    [{ data: file('cut.wav', wav(8000).subarray(0, 1000)), ...ids }, 'DATA_INVALID', /cut\.wav/],
    [{ data: file('empty.jsonl', '') }, 'DATA_EMPTY', /empty\.jsonl|the texts|no /],
    [{ data: file('half.jsonl', '{"text":"a"}\n{"text":"b') }, 'DATA_INVALID', /half\.jsonl.*2/s],
    [{ data: file('other.jsonl', '{"txt":"a"}\n') }, 'DATA_INVALID', /other\.jsonl.*text/s],
    [
      { data: { files: file('odd.bin', new Uint8Array(7)), format: 'tokens16' }, ...ids },
      'DATA_INVALID',
      /odd\.bin/,
    ],
    [
      { data: { files: file('far.bin', new Uint8Array(400).fill(255)), format: 'tokens16' }, ...ids },
      'TOKEN_OUT_OF_RANGE',
      /65535/,
    ],
    [{ data: iterable() }, 'DATA_EMPTY', /no |data\.jsonl|the texts/],
    [{ data: iterable('a text', 7) }, 'INVALID_ARGUMENT', /example 1 of the data is 7/],
    [{ data: iterable({ text: 7n }) }, 'INVALID_ARGUMENT', /example 0 of the data cannot be written as JSON/],
    [{ data: iterable([1, 2, 9000]), ...novels }, 'TOKEN_OUT_OF_RANGE', /9000/],
    [{ data: iterable([1, -2]), ...novels }, 'DATA_INVALID', /line 1: `text` holds -2, expected token ids/],
    [
      { batch: { size: 2 ** 20, length: 1024, order: 'windows' } },
      'OUT_OF_MEMORY',
      /`batch\.size` is 1048576; \d+ fits/,
    ],
  ]
  for (const [i, [changes, code, message]] of cases.entries()) {
    const run = train({ ...small(join(folder, `run${i}`)), ...changes } as TrainOptions)
    await t.throwsAsync(run.result, failure(code, message), `case ${i}`)
  }
  // What the source itself throws comes through.
  const run = train({ ...small(join(folder, 'broken')), data: broken() })
  await t.throwsAsync(run.result, { instanceOf: RangeError, message: 'the source is gone' })
  // So does what it could not read, which is no failure to write.
  const absent = train({ ...small(join(folder, 'absent')), data: linesOf(join(folder, 'absent.txt')) })
  await t.throwsAsync(absent.result, { code: 'ENOENT', message: /absent\.txt/ })
  const nowhere = train({ ...small(join(file('a file', ''), 'run')), data: iterable('a text') })
  await t.throwsAsync(nowhere.result, failure('IO_ERROR', /cannot write .*data\.jsonl/))
})

async function* linesOf(file: string): AsyncGenerator<string> {
  yield* createInterface({ input: (await open(file)).createReadStream() })
}

/** A WAV file of so many samples of silence, 16 bits, 8 kHz. */
function wav(samples: number): Uint8Array {
  const bytes = Buffer.alloc(44 + 2 * samples)
  bytes.write('RIFF')
  bytes.writeUInt32LE(36 + 2 * samples, 4)
  bytes.write('WAVEfmt ', 8)
  bytes.writeUInt32LE(16, 16)
  bytes.writeUInt16LE(1, 20)
  bytes.writeUInt16LE(1, 22)
  bytes.writeUInt32LE(8000, 24)
  bytes.writeUInt32LE(16000, 28)
  bytes.writeUInt16LE(2, 32)
  bytes.writeUInt16LE(16, 34)
  bytes.write('data', 36)
  bytes.writeUInt32LE(2 * samples, 40)
  return bytes
}

test('the schema says of every field what it is', (t) => {
  interface Schema {
    description?: string
    properties?: Record<string, Schema>
    prefixItems?: unknown
    anyOf?: Schema[]
  }
  const walk = (schema: Schema, path: string) => {
    for (const [name, field] of Object.entries(schema.properties ?? {})) {
      const kinds = [field, ...(field.anyOf ?? [])]
      t.true(
        kinds.some((kind) => kind.description || kind.properties || kind.prefixItems),
        `${path}${name} is not described`,
      )
      kinds.forEach((kind) => walk(kind, `${path}${name}.`))
    }
  }
  walk(trainSchema, '')
  t.deepEqual((trainSchema as { required: string[] }).required, ['out', 'data', 'steps'])
})

test('node-mamba train: a file, its errors, its result, and resuming', async (t) => {
  const folder = temporaryFolder(t)
  const run = (...args: string[]) =>
    new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve, reject) => {
      const child = spawn(process.execPath, ['--import=tsx', 'lib/cli/main.ts', 'train', ...args], {
        cwd: root,
        env: { ...process.env, NODE_OPTIONS: '' },
      })
      const output = { stdout: '', stderr: '' }
      child.stdout.setEncoding('utf8').on('data', (part: string) => (output.stdout += part))
      child.stderr.setEncoding('utf8').on('data', (part: string) => (output.stderr += part))
      child.on('error', reject)
      child.on('close', (code) => resolve({ code, ...output }))
    })
  const file = join(folder, 'config.json')
  const write = (changes: object) => {
    // Paths are relative to the file.
    writeFileSync(join(folder, 'text.txt'), readFileSync(text))
    writeFileSync(file, JSON.stringify({ ...small('run'), data: 'text.txt', ...changes }))
  }
  mkdirSync(folder, { recursive: true })
  write({ shedule: {} })
  const misspelt = await run(file)
  t.is(misspelt.code, 2)
  t.regex(misspelt.stderr, /`shedule`; did you mean `schedule`\?/)
  write({})
  const first = await run(file, '--json')
  t.is(first.code, 0, first.stderr)
  const lines = first.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)
  t.is(lines.length, 21)
  t.is(lines[20]!.model, join(folder, 'run/model'))
  const again = await run(file)
  t.is(again.code, 1)
  t.regex(again.stderr, /^RUN_INVALID/)
  const resumed = await run(file, '--resume')
  t.is(resumed.code, 0, resumed.stderr)
  t.regex(resumed.stdout, /^steps +20\nloss +\d\.\d{4}\nmodel/)
  const schema = await run('--schema')
  t.deepEqual(JSON.parse(schema.stdout), JSON.parse(JSON.stringify(trainSchema)))
  t.is((await run(join(folder, 'none.json'))).code, 1)
})
