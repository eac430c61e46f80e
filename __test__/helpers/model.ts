import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { Mamba, type LoadOptions, type MambaErrorCode } from 'node-mamba'

/** The default model's folder, by path. */
export const modelFolder = fileURLToPath(new URL('../../models/mamba-novels-7m', import.meta.url))

/** What the official implementation computes on it in float32. */
export const reference = JSON.parse(
  readFileSync(new URL('../fixtures/reference.json', import.meta.url), 'utf8'),
) as { prompts: { text: string; ids: number[]; greedy: number[]; logits: number[] }[] }

/** A model for all tests of a file; in f32, so that every comparison may be strict. */
export function useModel(options: LoadOptions = { dtype: 'f32' }): () => Mamba {
  let model: Mamba | undefined
  test.before(async () => {
    model = await Mamba.load('default', options)
  })
  test.after.always(() => model?.dispose())
  return () => model!
}

/** What ava's `throwsAsync` is to expect. */
export function failure(code: MambaErrorCode, message?: RegExp) {
  return { name: 'MambaError', code, ...(message && { message }) }
}
