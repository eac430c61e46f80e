// Every code that bad input can bring about from JavaScript, where no other file has it, and that the message
// names the value. Sessions, batches, embeddings and tokenizers are in their own files.
import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { Mamba, type GenerateOptions, type LoadOptions } from 'node-mamba'
import {
  randomTensors,
  tiny,
  writeConfig,
  writePytorch,
  writeSafetensors,
  type Tensor,
} from './helpers/checkpoint.js'
import { temporaryFolder } from './helpers/folder.js'
import { failure, useModel } from './helpers/model.js'

const model = useModel()
const tensors = randomTensors(tiny)

/** A folder with a small model, made wrong by `change`. */
function spoiled(t: ExecutionContext, change: (weights: string, folder: string) => void): string {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  const weights = join(folder, 'model.safetensors')
  writeSafetensors(weights, tensors)
  change(weights, folder)
  return folder
}

/** The weights with one tensor replaced, or left out. */
function replaced(name: string, change: (tensor: Tensor) => Partial<Tensor> | undefined): Tensor[] {
  return tensors.flatMap((tensor) => {
    if (tensor.name !== name) return [tensor]
    const changed = change(tensor)
    return changed ? [{ ...tensor, ...changed }] : []
  })
}

/** Rewrites the header of a safetensors file; the data stay. */
function changeHeader(
  weights: string,
  change: (header: Record<string, Record<string, unknown>>) => void,
): void {
  const bytes = readFileSync(weights)
  const length = Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString()) as Record<
    string,
    Record<string, unknown>
  >
  change(header)
  const text = Buffer.from(JSON.stringify(header))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  writeFileSync(weights, Buffer.concat([size, text, bytes.subarray(8 + length)]))
}

const norm = 'backbone.norm_f.weight'

test('a source that is none of the known forms', async (t) => {
  for (const source of [
    'models',
    'folder/with/depth',
    '',
    'a b/c',
    '~/model',
    'default/',
    'C:model',
    'https://x/y',
  ]) {
    await t.throwsAsync(Mamba.load(source), failure('INVALID_ARGUMENT', /expected 'default'/), source)
  }
  await t.throwsAsync(Mamba.load(42 as never), failure('INVALID_ARGUMENT', /42/))
  await t.throwsAsync(
    Mamba.load(new URL('https://example.com/x')),
    failure('INVALID_ARGUMENT', /example\.com/),
  )
})

test('models that are not here', async (t) => {
  const install = /npm install @node-mamba\/model-default-embedder/
  await t.throwsAsync(Mamba.load('default-embedder'), failure('MODEL_NOT_INSTALLED', install))
  await t.throwsAsync(
    Mamba.load('state-spaces/mamba-130m'),
    failure('HUB_UNAVAILABLE', /'state-spaces\/mamba-130m'/),
  )
  await t.throwsAsync(Mamba.load('a/b@main'), failure('HUB_UNAVAILABLE'))
  await t.throwsAsync(Mamba.load('./no-such-folder'), failure('FILE_NOT_FOUND', /no-such-folder/))
})

test('missing files', async (t) => {
  const noWeights = spoiled(t, (weights) => rmSync(weights))
  await t.throwsAsync(Mamba.load(noWeights), failure('FILE_NOT_FOUND', /model\.safetensors/))
  const noConfig = spoiled(t, (_, folder) => rmSync(join(folder, 'config.json')))
  await t.throwsAsync(Mamba.load(noConfig), failure('FILE_NOT_FOUND', /config\.json/))
})

test('damaged weights files', async (t) => {
  const load = (change: (weights: string) => void) => Mamba.load(spoiled(t, change))
  const invalid = (message?: RegExp) => failure('CHECKPOINT_INVALID', message)
  await t.throwsAsync(
    load((weights) => truncateSync(weights, 1000)),
    invalid(/model\.safetensors/),
  )
  await t.throwsAsync(
    load((weights) => truncateSync(weights, readFileSync(weights).length - 4)),
    invalid(),
  )
  await t.throwsAsync(
    load((weights) => truncateSync(weights, 0)),
    invalid(),
  )
  await t.throwsAsync(
    load((weights) => writeFileSync(weights, 'not weights at all')),
    invalid(),
  )
  const terabytes = Buffer.alloc(16)
  terabytes.writeBigUInt64LE(5n << 40n)
  await t.throwsAsync(
    load((weights) => writeFileSync(weights, terabytes)),
    invalid(),
  )
  await t.throwsAsync(
    load((weights) =>
      changeHeader(weights, (header) => {
        header[norm]!.data_offsets = [0, 64]
      }),
    ),
    invalid(),
  )
})

test('wrong tensors', async (t) => {
  const load = (wrong: Tensor[], options?: LoadOptions) =>
    Mamba.load(
      spoiled(t, (weights) => writeSafetensors(weights, wrong)),
      options,
    )
  await t.throwsAsync(
    load(replaced(norm, () => undefined)),
    failure('TENSOR_MISSING', /backbone\.norm_f\.weight/),
  )
  const short = replaced(norm, ({ data }) => ({ shape: [15], data: data.slice(0, 15) }))
  await t.throwsAsync(load(short), failure('TENSOR_SHAPE', /norm_f\.weight.*\[15\].*\[16\]/))
  const integers = spoiled(t, (weights) =>
    changeHeader(weights, (header) => {
      header[norm]!.dtype = 'I32'
    }),
  )
  await t.throwsAsync(Mamba.load(integers), failure('TENSOR_DTYPE', /norm_f\.weight.*I32/))
})

test('NaN weights: refused on request; otherwise seen when there is no token to choose', async (t) => {
  const nan = replaced(norm, ({ data }) => ({ data: data.map((x, i) => (i === 3 ? NaN : x)) }))
  const folder = spoiled(t, (weights) => writeSafetensors(weights, nan))
  await t.throwsAsync(
    Mamba.load(folder, { validate: true }),
    failure('TENSOR_NOT_FINITE', /norm_f\.weight.*NaN.*element 3/),
  )
  const loaded = await Mamba.load(folder)
  await t.throwsAsync(loaded.complete([1]), failure('LOGITS_NOT_FINITE'))
  await loaded.dispose()
})

test('configurations that cannot be run', async (t) => {
  const load = (config: unknown) =>
    Mamba.load(
      spoiled(t, (_, folder) =>
        writeFileSync(
          join(folder, 'config.json'),
          typeof config === 'string' ? config : JSON.stringify(config),
        ),
      ),
    )
  const invalid = (message: RegExp) => failure('CONFIG_INVALID', message)
  await t.throwsAsync(load('{'), invalid(/JSON/))
  await t.throwsAsync(load([]), invalid(/object/))
  await t.throwsAsync(load({}), invalid(/d_model/))
  await t.throwsAsync(load({ ...tiny, d_model: -1 }), invalid(/d_model.*-1/))
  await t.throwsAsync(load({ ...tiny, n_layer: 'two' }), invalid(/n_layer.*two/))
  await t.throwsAsync(load({ ...tiny, d_model: 1e9, n_layer: 1e9 }), invalid(/1000000000/))
  await t.throwsAsync(load({ ...tiny, ssm_cfg: { layer: 'Mamba2' } }), invalid(/Mamba2/))
  await t.throwsAsync(load({ model_type: 'llama', hidden_size: 16 }), invalid(/llama/))
})

test('a pickle that tries to run code is refused by name', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  writePytorch(join(folder, 'pytorch_model.bin'), tensors, { module: 'os', name: 'system' })
  await t.throwsAsync(Mamba.load(folder), failure('PICKLE_UNSAFE', /os\.system/))
})

test('load options', async (t) => {
  const refused = async (options: object, message: RegExp) =>
    t.throwsAsync(Mamba.load('default', options as LoadOptions), failure('OPTION_INVALID', message))
  await refused({ dtype: 'f8' }, /dtype.*f8.*f32/)
  await refused({ device: 'tpu' }, /device.*tpu/)
  await refused({ threads: 0 }, /threads.*0/)
  await refused({ threads: -1 }, /threads.*-1/)
  await refused({ threads: 1.5 }, /threads.*1\.5/)
  await refused({ threads: NaN }, /threads.*NaN/)
  await refused({ threads: 5000 }, /threads.*5000.*1024/)
  await refused({ maxBatch: 0 }, /maxBatch/)
  await refused({ queueLimit: 0 }, /queueLimit/)
  await refused({ mmap: 'yes' }, /mmap.*'yes'.*true or false/)
  await refused({ onProgress: 1 }, /onProgress/)
  await refused({ signal: {} }, /signal/)
  await refused({ thread: 2 }, /`thread`.*did you mean `threads`/)
  await t.throwsAsync(Mamba.load('default', 7 as never), failure('INVALID_ARGUMENT', /7/))
})

const generateOptions: [object, RegExp][] = [
  [{ maxTokens: 0 }, /maxTokens.*0/],
  [{ maxTokens: -5 }, /maxTokens.*-5/],
  [{ maxTokens: 2 ** 32 }, /maxTokens.*4294967296, expected an integer from 1 to 4294967295/],
  [{ maxTokens: NaN }, /maxTokens.*NaN/],
  [{ maxTokens: 2.5 }, /maxTokens.*2\.5/],
  [{ maxTokens: '5' }, /maxTokens.*'5'/],
  [{ maxTokens: Infinity }, /maxTokens.*Infinity/],
  [{ temperature: -1 }, /temperature.*-1/],
  [{ temperature: NaN }, /temperature.*NaN/],
  [{ temperature: 'hot' }, /temperature.*'hot'/],
  [{ topK: -1 }, /topK.*-1/],
  [{ topP: 1.5 }, /topP.*1\.5/],
  [{ topP: NaN }, /topP.*NaN/],
  [{ minP: -0.5 }, /minP.*-0\.5/],
  [{ repetitionPenalty: 0 }, /repetitionPenalty.*0/],
  [{ frequencyPenalty: Infinity }, /frequencyPenalty/],
  [{ presencePenalty: NaN }, /presencePenalty/],
  [{ penaltyWindow: 1e6 }, /penaltyWindow.*1000000/],
  [{ seed: -1 }, /seed.*-1/],
  [{ seed: 0.5 }, /seed.*0\.5/],
  [{ seed: 2 ** 53 }, /seed.*9007199254740992/],
  [{ logprobs: 1000 }, /logprobs.*1000/],
  [{ stop: '' }, /stop/],
  [{ stop: ['a', 5] }, /stop\[1\].*5/],
  [{ stop: 5 }, /stop.*5/],
  [{ logitBias: { 5: NaN } }, /logitBias\[5\].*NaN/],
  [{ logitBias: { 99999: 1 } }, /logitBias\[99999\]/],
  [{ logitBias: [1] }, /logitBias/],
  [{ ignoreEos: 1 }, /ignoreEos.*1/],
  [{ signal: 'stop' }, /signal.*'stop'/],
  [{ max_tokens: 5 }, /`max_tokens`.*did you mean `maxTokens`/],
  [{ temprature: 1 }, /`temprature`.*did you mean `temperature`/],
  [{ somethingElse: 1 }, /`somethingElse`(?!.*did you mean)/],
]

test('generate options, each named with its value, by every way to generate', async (t) => {
  for (const [wrong, message] of generateOptions) {
    const options = wrong as GenerateOptions
    const expected = failure('OPTION_INVALID', message)
    await t.throwsAsync(model().complete('x', options), expected, JSON.stringify(wrong))
    await t.throwsAsync(model().generate('x', options).result, expected)
    await t.throwsAsync(model().generate('x', options).next(), expected)
    await t.throwsAsync(model().completeBatch(['x'], options), expected)
  }
  await t.throwsAsync(model().complete('x', { stopTokens: [8192] }), failure('TOKEN_OUT_OF_RANGE', /8192/))
  await t.throwsAsync(
    model().complete('x', { logitBias: { a: 1 } as never }),
    failure('INVALID_ARGUMENT', /NaN/),
  )
})

test('the other options', async (t) => {
  await t.throwsAsync(
    model().forward('x', { logits: 'some' as never }),
    failure('OPTION_INVALID', /'some'.*'all' or 'last'/),
  )
  await t.throwsAsync(model().embed('x', { pooling: 'max' as never }), failure('OPTION_INVALID', /'max'/))
  await t.throwsAsync(model().embed('x', { dimensions: 0 }), failure('OPTION_INVALID', /dimensions.*0/))
  await t.throwsAsync(
    model().embed('x', { dimensions: 257 }),
    failure('OPTION_INVALID', /dimensions.*257.*256/),
  )
  await t.throwsAsync(
    model().embed('x', { normalise: true } as never),
    failure('OPTION_INVALID', /did you mean `normalize`/),
  )
  await t.throwsAsync(
    model().embedStream(['x'], { batchSize: 0 }).next(),
    failure('OPTION_INVALID', /batchSize/),
  )
  await t.throwsAsync(model().score('x y', { signal: 1 as never }), failure('OPTION_INVALID', /signal/))
})

test('token ids, each named with its place', async (t) => {
  const range = failure('TOKEN_OUT_OF_RANGE', /8192 at position 2/)
  await t.throwsAsync(model().complete([1, 2, 8192]), range)
  await t.throwsAsync(model().forward(Uint32Array.of(1, 2, 8192)), range)
  await t.throwsAsync(model().session().append([1, 2, 8192]), range)
  await t.throwsAsync(model().score([1, 2, 8192]), range)
  await t.throwsAsync(model().complete([1, -1]), failure('TOKEN_OUT_OF_RANGE', /-1 at position 1/))
  await t.throwsAsync(model().complete([2 ** 32]), failure('TOKEN_OUT_OF_RANGE', /4294967296 at position 0/))
  await t.throwsAsync(model().complete([1, 1.5]), failure('INVALID_ARGUMENT', /1\.5 at position 1/))
  await t.throwsAsync(model().complete([NaN]), failure('INVALID_ARGUMENT', /NaN at position 0/))
  await t.throwsAsync(model().complete(['a' as never]), failure('INVALID_ARGUMENT', /'a' at position 0/))
  t.throws(() => model().tokenizer.decode([-1]), failure('TOKEN_OUT_OF_RANGE'))
})

test('arguments of the wrong type', async (t) => {
  for (const wrong of [undefined, null, 5, {}, new Float32Array(2), new Date()]) {
    const expected = failure('INVALID_ARGUMENT')
    await t.throwsAsync(model().complete(wrong as never), expected)
    await t.throwsAsync(model().generate(wrong as never).result, expected)
    await t.throwsAsync(model().forward(wrong as never), expected)
    await t.throwsAsync(model().embed(wrong as never), expected)
    await t.throwsAsync(
      model()
        .embedStream(wrong as never)
        .next(),
      expected,
    )
    await t.throwsAsync(model().completeBatch(wrong as never), expected)
    await t.throwsAsync(
      model()
        .session()
        .append(wrong as never),
      expected,
    )
    t.throws(() => model().tokenizer.encode(wrong as never), expected)
  }
})

test('nothing to go on from', async (t) => {
  const empty = failure('EMPTY_PROMPT')
  await t.throwsAsync(model().complete(''), empty)
  await t.throwsAsync(model().complete([]), empty)
  await t.throwsAsync(model().generate(new Uint32Array()).next(), empty)
  await t.throwsAsync(model().forward(''), empty)
  await t.throwsAsync(model().embed(''), empty)
  await t.throwsAsync(model().score([1]), failure('EMPTY_PROMPT', /two/))
})

test('a model that was disposed of', async (t) => {
  const gone = await Mamba.load()
  const session = gone.session()
  await session.append('x')
  const running = gone.complete('The ship', { maxTokens: 1_000_000, ignoreEos: true })
  const streaming = gone.generate('The ship', { maxTokens: 1_000_000, ignoreEos: true })
  await streaming.next()
  const disposed = failure('MODEL_DISPOSED')
  await Promise.all([
    t.throwsAsync(running, disposed),
    t.throwsAsync(streaming.result, disposed),
    gone.dispose(),
    gone.dispose(),
  ])
  await gone.dispose()
  await gone[Symbol.asyncDispose]()
  await t.throwsAsync(gone.complete('x'), disposed)
  await t.throwsAsync(gone.generate('x').next(), disposed)
  await t.throwsAsync(gone.completeBatch(['x']), disposed)
  await t.throwsAsync(gone.forward('x'), disposed)
  await t.throwsAsync(gone.score('x y'), disposed)
  await t.throwsAsync(gone.embed('x'), disposed)
  await t.throwsAsync(gone.embedStream(['x']).next(), disposed)
  await t.throwsAsync(gone.restore(session.toBytes()), disposed)
  await t.throwsAsync(session.append('x'), disposed)
  await t.throwsAsync(session.generate().result, disposed)
  t.throws(() => gone.session(), disposed)
  t.throws(() => gone.tokenizer.encode('x'), disposed)
})

test('strings that are not well-formed do no harm', async (t) => {
  // A lone surrogate has no UTF-8 form; it becomes U+FFFD on the way in.
  t.true((await model().complete('\uD800 and \0', { maxTokens: 2 })).tokens.length > 0)
})
