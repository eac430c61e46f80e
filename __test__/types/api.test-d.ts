// Type tests: tsc checks them (npm run check), nothing runs them. `expectType` fails to compile when the types
// differ; under @ts-expect-error stands what must not compile.
import {
  Mamba,
  MambaError,
  version,
  type Completion,
  type ForwardResult,
  type GeneratedToken,
  type MambaErrorCode,
  type Score,
  type Session,
} from 'node-mamba'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function expectType<A>(): <B>(value: B, ..._equal: Equal<A, B> extends true ? [] : [never]) => void {
  return () => {}
}

export async function models(signal: AbortSignal): Promise<void> {
  const model = await Mamba.load('./folder', {
    dtype: 'bf16',
    threads: 2,
    signal,
    onProgress: ({ loadedBytes }) => expectType<number>()(loadedBytes),
  })
  expectType<Mamba>()(model)
  await Mamba.load()
  // @ts-expect-error: a dtype that weights cannot have
  await Mamba.load('default', { dtype: 'int4' })
  // @ts-expect-error: an option that does not exist
  await Mamba.load('default', { gpu: true })
  // @ts-expect-error: a model comes from load
  void new Mamba()

  // The official field names, read-only.
  expectType<number>()(model.config.d_model)
  // @ts-expect-error: the configuration is what was loaded
  model.config.d_model = 1
  await model.dispose()
}

export async function text(model: Mamba, signal: AbortSignal): Promise<void> {
  for await (const part of model.generate('text', { maxTokens: 5, stop: ['.'], seed: 1, signal })) {
    expectType<GeneratedToken>()(part)
    expectType<string>()(part.text)
    expectType<number>()(part.token)
  }
  expectType<Completion>()(await model.complete(new Uint32Array([1, 2])))
  expectType<Completion[]>()(await model.completeBatch(['text', [1, 2]], { temperature: 0 }))
  expectType<ForwardResult>()(await model.forward([1, 2], { logits: 'last' }))
  expectType<Score>()(await model.score('text'))
  // @ts-expect-error: neither text nor ids
  await model.complete(5)
  // @ts-expect-error: a misspelt option
  await model.complete('text', { maxToken: 5 })
}

export async function vectors(model: Mamba, source: AsyncIterable<string>): Promise<void> {
  expectType<Float32Array>()(await model.embed('one text'))
  expectType<Float32Array[]>()(await model.embed(['several', 'texts'], { pooling: 'mean' }))
  for await (const { texts, vectors: batch } of model.embedStream(source)) {
    expectType<string[]>()(texts)
    expectType<Float32Array[]>()(batch)
  }
  // @ts-expect-error: there is no such pooling
  await model.embed('text', { pooling: 'max' })
}

export async function sessions(model: Mamba): Promise<void> {
  const session = model.session()
  expectType<Session>()(session)
  await session.append('text')
  expectType<Session>()(session.fork())
  expectType<number>()(session.byteLength)
  expectType<Session>()(await model.restore(session.toBytes()))
  expectType<Session>()(await model.restore('./file'))
  // @ts-expect-error: how much a session has read is for it to say
  session.tokens = 0
}

export function errors(): void {
  const error = new MambaError('MODEL_DISPOSED', 'the model was disposed of', { cause: new Error('x') })
  expectType<MambaErrorCode>()(error.code)
  // @ts-expect-error: not a code
  void new MambaError('NO_SUCH_CODE', 'x')
  // @ts-expect-error: code is read-only
  error.code = 'ABORTED'
  expectType<string>()(version())
}
