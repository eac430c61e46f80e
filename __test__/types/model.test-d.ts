// Type tests of models, sessions and generations; see api.test-d.ts.
import {
  diagnose,
  Mamba,
  type Completion,
  type Diagnosis,
  type EmbeddedBatch,
  type GeneratedToken,
  type GenerateOptions,
  type Generation,
  type LoadOptions,
  type MambaConfig,
  type Score,
  type Session,
  type TextOrIds,
} from 'node-mamba'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function expectType<A, B>(..._equal: Equal<A, B> extends true ? [] : [never]): void {}

expectType<ReturnType<typeof diagnose>, Diagnosis>()

const model = await Mamba.load()
expectType<typeof model, Mamba>()
await Mamba.load(new URL('file:///models/x'), { device: 'auto', dtype: 'bf16', threads: 2, mmap: false })
await Mamba.load('./x', {
  onProgress: ({ stage, loadedBytes, totalBytes }) => void [stage, loadedBytes, totalBytes],
})
// @ts-expect-error: a model is loaded, not constructed
void new Mamba()
// @ts-expect-error: no such dtype
void Mamba.load('./x', { dtype: 'f64' })
// @ts-expect-error: no such option
void Mamba.load('./x', { thread: 2 })
expectType<LoadOptions['signal'], AbortSignal | undefined>()

expectType<typeof model.config, MambaConfig>()
expectType<typeof model.config.ssm_cfg.d_state, number>()
// @ts-expect-error: what is known of a model does not change
model.threads = 3
// @ts-expect-error: nor does its configuration
model.config.d_model = 3

// Text or ids wherever text goes; read-only arrays too.
const ids = [1, 2, 3] as const
expectType<TextOrIds, string | readonly number[] | Uint32Array>()
for (const text of ['text', ids, Uint32Array.of(1)] as TextOrIds[]) {
  expectType<Awaited<ReturnType<typeof model.complete>>, Completion>()
  void [model.complete(text), model.generate(text), model.forward(text), model.score(text), model.embed(text)]
}
// @ts-expect-error: one prompt is no batch
void model.completeBatch('text')
// @ts-expect-error: neither text nor ids
void model.complete(new Float32Array(3))

const { logits, shape } = await model.forward('x', { logits: 'last' })
expectType<typeof logits, Float32Array>()
expectType<typeof shape, [rows: number, vocab: number]>()
// @ts-expect-error: all or last
void model.forward('x', { logits: 'first' })
expectType<Awaited<ReturnType<typeof model.score>>, Score>()

const stream = model.generate('x', { maxTokens: 5, stop: ['\n'] as const, logitBias: { 5: -1 } })
expectType<typeof stream, Generation>()
expectType<typeof stream.result, Promise<Completion>>()
for await (const step of stream) expectType<typeof step, GeneratedToken>()
expectType<Completion['finishReason'], 'length' | 'stop'>()
expectType<Completion['tokens'], Uint32Array>()
void ({ logitBias: new Map([[1, 2]]), stopTokens: ids } satisfies GenerateOptions)
// @ts-expect-error: camelCase
void model.complete('x', { max_tokens: 5 })

// One text gives one vector, several give several.
expectType<Awaited<ReturnType<typeof model.embed>>, Float32Array>() // the last overload
const one = await model.embed('x')
expectType<typeof one, Float32Array>()
const oneOfIds = await model.embed(ids)
expectType<typeof oneOfIds, Float32Array>()
const several = await model.embed(['x', [1, 2], Uint32Array.of(1)], { pooling: 'last', dimensions: 64 })
expectType<typeof several, Float32Array[]>()
const none = await model.embed([])
expectType<typeof none, Float32Array[]>()
declare const texts: AsyncIterable<string>
for await (const batch of model.embedStream(texts, { batchSize: 2 })) {
  expectType<typeof batch, EmbeddedBatch<string>>()
  expectType<typeof batch.texts, string[]>()
}

const session = model.session()
expectType<typeof session, Session>()
expectType<ReturnType<typeof session.append>, Promise<number>>()
expectType<ReturnType<typeof session.fork>, Session>()
expectType<ReturnType<typeof session.save>, Promise<void>>()
expectType<ReturnType<typeof session.toBytes>, Uint8Array>()
expectType<ReturnType<typeof model.restore>, Promise<Session>>()
void [model.restore('a.session'), model.restore(new URL('file:///a')), model.restore(session.toBytes())]
// @ts-expect-error: an ArrayBuffer is no path and no bytes
void model.restore(new ArrayBuffer(8))
expectType<ReturnType<typeof model.dispose>, Promise<void>>()
