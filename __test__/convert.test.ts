// A checkpoint in another type: what comes out is what a load in that type would have made.
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import test from 'ava'
import { convert, Mamba, type ConvertProgress } from 'node-mamba'
import { temporaryFolder } from './helpers/folder.js'
import { failure } from './helpers/model.js'

const text = 'It was the best of times, it was the worst of times'

for (const dtype of ['q8_0', 'q4_k', 'f16'] as const) {
  test(`a checkpoint converted to ${dtype} gives the logits of one loaded in ${dtype}`, async (t) => {
    const folder = join(temporaryFolder(t), 'new', dtype)
    const steps: ConvertProgress[] = []
    await convert('default', pathToFileURL(folder), { dtype, onProgress: (step) => steps.push(step) })
    t.deepEqual(readdirSync(folder).toSorted(), ['config.json', 'model.safetensors', 'tokenizer.json'])
    const last = steps.at(-1)!
    t.is(last.writtenBytes, last.totalBytes)
    t.true(statSync(join(folder, 'model.safetensors')).size < last.totalBytes + 32768 /* its header */)

    const [converted, loaded] = await Promise.all([Mamba.load(folder), Mamba.load('default', { dtype })])
    t.teardown(() => Promise.all([converted.dispose(), loaded.dispose()]))
    t.is(converted.dtype, dtype)
    t.deepEqual(
      await converted.forward(text, { logits: 'all' }),
      await loaded.forward(text, { logits: 'all' }),
    )
    t.is(await converted.complete(text).then(({ text }) => text), (await loaded.complete(text)).text)
    t.deepEqual((await converted.embed([text]))[0], (await loaded.embed([text]))[0])
  })
}

test('quantized results do not depend on the company', async (t) => {
  const model = await Mamba.load('default', { dtype: 'q8_0' })
  t.teardown(() => model.dispose())
  const prompts = Array.from({ length: 24 }, (_, i) => `${'It was a dark night. '.repeat(i % 5)}Chapter ${i}`)
  const options = { maxTokens: 24 }
  const together = await model.completeBatch(prompts, options)
  for (const [i, prompt] of prompts.entries()) {
    t.deepEqual((await model.complete(prompt, options)).tokens, together[i]!.tokens, prompt)
  }
})

test('an aborted conversion leaves what was there', async (t) => {
  const folder = temporaryFolder(t)
  await convert('default', folder, { dtype: 'f16', threads: 1 })
  const before = readFileSync(join(folder, 'model.safetensors'))
  const abort = new AbortController()
  const reason = new Error('enough')
  const aborted = convert('default', folder, {
    dtype: 'q8_0',
    onProgress: () => abort.abort(reason),
    signal: abort.signal,
  })
  t.is((await t.throwsAsync(aborted, failure('ABORTED')))?.cause, reason)
  const thrown = convert('default', folder, {
    dtype: 'q8_0',
    onProgress: () => {
      throw reason
    },
  })
  t.is(await t.throwsAsync(thrown), reason)
  t.true(before.equals(readFileSync(join(folder, 'model.safetensors'))))
})

test('what a conversion refuses', async (t) => {
  const folder = temporaryFolder(t)
  await t.throwsAsync(
    convert('default', folder, { dtype: 'q5_1' as 'q8_0' }),
    failure('OPTION_INVALID', /q5_1.*q4_k/),
  )
  await t.throwsAsync(convert('default', folder, { threads: 0 }), failure('OPTION_INVALID', /threads.*0/))
  await t.throwsAsync(convert(join(folder, 'none'), folder), failure('FILE_NOT_FOUND', /none/))
  const file = join(folder, 'file')
  await convert('default', folder, { dtype: 'bf16' })
  await t.throwsAsync(convert('default', join(folder, 'config.json', 'sub')), { code: 'IO_ERROR' })
  await t.throwsAsync(convert('default', 7 as unknown as string), failure('INVALID_ARGUMENT', /7/))
  t.false(readdirSync(folder).includes(file))
})
