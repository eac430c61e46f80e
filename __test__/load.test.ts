import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import test from 'ava'
import { Mamba, type LoadProgress } from 'node-mamba'
import {
  randomTensors,
  tiny,
  writeConfig,
  writePytorch,
  writeSafetensors,
  writeShards,
} from './helpers/checkpoint.js'
import { temporaryFolder } from './helpers/folder.js'
import { failure, modelFolder } from './helpers/model.js'

const tensors = randomTensors(tiny)

/** Loads a checkpoint and gives the logits of a few ids. */
async function logitsOf(source: string | URL): Promise<Float32Array> {
  const model = await Mamba.load(source)
  try {
    return (await model.forward([1, 2, 3, 63, 0])).logits
  } finally {
    await model.dispose()
  }
}

test('safetensors, a sharded index and pytorch_model.bin give the same model', async (t) => {
  const folder = temporaryFolder(t)
  for (const name of ['one', 'shards', 'torch']) writeConfig(join(folder, name), tiny)
  writeSafetensors(join(folder, 'one/model.safetensors'), tensors)
  writeShards(join(folder, 'shards'), tensors)
  writePytorch(join(folder, 'torch/pytorch_model.bin'), tensors)
  const expected = await logitsOf(join(folder, 'one'))
  t.true(expected.every(Number.isFinite))
  t.not(new Set(expected).size, 1)
  t.deepEqual(await logitsOf(join(folder, 'shards')), expected)
  t.deepEqual(await logitsOf(join(folder, 'torch')), expected)
})

test('the Hugging Face configuration and names give the same model as the official ones', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(join(folder, 'official'), tiny)
  writeSafetensors(join(folder, 'official/model.safetensors'), tensors)
  writeConfig(join(folder, 'hf'), {
    model_type: 'mamba',
    hidden_size: tiny.d_model,
    num_hidden_layers: tiny.n_layer,
    vocab_size: tiny.vocab_size,
    state_size: 16,
    conv_kernel: 4,
    time_step_rank: 'auto',
  })
  const renamed = tensors.map((tensor) => ({
    ...tensor,
    name: tensor.name.replace('.embedding.', '.embeddings.'),
  }))
  writeSafetensors(join(folder, 'hf/model.safetensors'), renamed)
  t.deepEqual(await logitsOf(join(folder, 'hf')), await logitsOf(join(folder, 'official')))
})

test('a source is a path, the URL of a folder, or a weights file', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  writeSafetensors(join(folder, 'model.safetensors'), tensors)
  const expected = await logitsOf(folder)
  t.deepEqual(await logitsOf(pathToFileURL(folder)), expected)
  t.deepEqual(await logitsOf(pathToFileURL(folder).href), expected)
  t.deepEqual(await logitsOf(join(folder, 'model.safetensors')), expected)
})

test('the default model is the package @node-mamba/model-default', async (t) => {
  const model = await Mamba.load()
  t.teardown(() => model.dispose())
  t.is(model.parameters, 7_353_600)
  t.is(model.device, 'cpu')
  t.is(model.dtype, 'bf16') // as stored
  t.is(model.vocabSize, 8192)
  t.is(model.config.d_model, 256)
  t.is(model.config.ssm_cfg.dt_rank, 16) // 'auto' in the file
  t.is(model.stateBytes, 12 * 512 * (16 + 3) * 4) // layers × d_inner × (d_state + d_conv − 1) × f32
  t.throws(() => ((model.config.ssm_cfg as { d_state: number }).d_state = 1), { instanceOf: TypeError })
})

test('without tokenizer.json a model takes ids, and text is refused by name', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  writeSafetensors(join(folder, 'model.safetensors'), tensors)
  const model = await Mamba.load(folder)
  t.teardown(() => model.dispose())
  t.false(model.tokenizer.available)
  t.is((await model.complete([1, 2], { maxTokens: 3 })).tokens.length, 3)
  t.is((await model.embed(Uint32Array.of(1, 2))).length, tiny.d_model)
  await t.throwsAsync(model.complete('text'), failure('TOKENIZER_MISSING'))
  await t.throwsAsync(model.embed(['text']), failure('TOKENIZER_MISSING'))
  await t.throwsAsync(model.session().append('text'), failure('TOKENIZER_MISSING'))
  t.throws(() => model.tokenizer.encode('text'), failure('TOKENIZER_MISSING'))
})

test('a tokenizer may be given by path', async (t) => {
  const folder = temporaryFolder(t)
  for (const name of ['config.json', 'model.safetensors'])
    copyFileSync(join(modelFolder, name), join(folder, name))
  mkdirSync(join(folder, 'elsewhere'))
  const tokenizer = join(folder, 'elsewhere/tokens.json')
  copyFileSync(join(modelFolder, 'tokenizer.json'), tokenizer)
  const model = await Mamba.load(folder, { tokenizer })
  t.teardown(() => model.dispose())
  const ids = model.tokenizer.encode('The ship — ünïcode 🚢')
  t.is(model.tokenizer.decode(ids), 'The ship — ünïcode 🚢')
  t.is(model.tokenizer.decode([...ids]), 'The ship — ünïcode 🚢')
  t.is(model.tokenizer.vocabSize, 8192)
})

test('a tokenizer that does not fit the vocabulary, or is none, is refused', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  writeSafetensors(join(folder, 'model.safetensors'), tensors)
  const tokenizer = join(modelFolder, 'tokenizer.json')
  await t.throwsAsync(Mamba.load(folder, { tokenizer }), failure('TOKENIZER_MISMATCH', /8191.*64/))
  writeFileSync(join(folder, 'tokenizer.json'), '{}')
  await t.throwsAsync(Mamba.load(folder), failure('TOKENIZER_INVALID', /tokenizer\.json/))
  const missing = join(folder, 'none.json')
  await t.throwsAsync(Mamba.load(folder, { tokenizer: missing }), failure('FILE_NOT_FOUND', /none\.json/))
})

test('dtype is what the weights are kept in', async (t) => {
  const bytes: Record<string, number> = {}
  for (const dtype of ['f32', 'bf16', 'f16', 'q8_0', 'q4_k'] as const) {
    const model = await Mamba.load('default', { dtype })
    t.is(model.dtype, dtype)
    bytes[dtype] = model.weightBytes
    t.is((await model.complete('The ship', { maxTokens: 5 })).tokens.length, 5)
    await model.dispose()
  }
  t.true(bytes.f32! > 1.9 * bytes.bf16!)
  t.true(bytes.f32! > 1.9 * bytes.f16!)
  t.true(bytes.bf16! > 1.8 * bytes.q8_0!) // 8.5 bits a weight, norms and A in f32
  t.true(bytes.q8_0! > 1.6 * bytes.q4_k!)
})

test('onProgress counts up to the whole', async (t) => {
  const seen: LoadProgress[] = []
  const model = await Mamba.load('default', { validate: true, onProgress: (progress) => seen.push(progress) })
  await model.dispose()
  for (const stage of ['validate', 'weights'] as const) {
    const bytes = seen.filter((progress) => progress.stage === stage).map(({ loadedBytes }) => loadedBytes)
    t.true(bytes.length > 2, stage)
    t.deepEqual(
      bytes,
      bytes.toSorted((a, b) => a - b),
    )
    t.is(bytes.at(-1), seen[0]!.totalBytes)
  }
})

test('an error that onProgress throws ends the load', async (t) => {
  const mine = new Error('mine')
  let calls = 0
  const onProgress = () => {
    calls++
    throw mine
  }
  t.is(await t.throwsAsync(Mamba.load('default', { onProgress })), mine)
  t.is(calls, 1)
})

test('a signal ends a load, before it starts and in its middle', async (t) => {
  const reason = new Error('enough')
  const before = await t.throwsAsync(
    Mamba.load('default', { signal: AbortSignal.abort(reason) }),
    failure('ABORTED'),
  )
  t.is(before!.cause, reason)

  const controller = new AbortController()
  let calls = 0
  const onProgress = () => {
    calls++
    controller.abort(reason)
  }
  const during = await t.throwsAsync(
    Mamba.load('default', { signal: controller.signal, validate: true, onProgress }),
    failure('ABORTED'),
  )
  t.is(during!.cause, reason)
  t.true(calls > 0)
})

test('mmap: false gives the same model', async (t) => {
  const [mapped, read] = [await Mamba.load(), await Mamba.load('default', { mmap: false })]
  t.deepEqual((await read.forward('The ship')).logits, (await mapped.forward('The ship')).logits)
  t.is(read.fingerprint, mapped.fingerprint)
  await Promise.all([mapped.dispose(), read.dispose()])
})
