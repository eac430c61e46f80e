// How models and the process that they live in end.
import test from 'ava'
import { runChild } from './helpers/child.js'

test('an idle model, with sessions, does not keep the process alive', async (t) => {
  const { code, signal, stdout, stderr } = await runChild(
    `const model = await Mamba.load()
    const session = model.session()
    await session.append('x')
    await model.complete('The ship', { maxTokens: 2 })
    globalThis.kept = [model, session]
    console.log('end')`,
  )
  t.deepEqual([code, signal, stdout, stderr], [0, null, 'end\n', ''])
})

test('calls under way keep the process alive, though nothing else refers to their model', async (t) => {
  const { code, stdout, stderr } = await runChild(
    `{
      const model = await Mamba.load()
      model.complete('The ship', { maxTokens: 300, ignoreEos: true }).then(({ tokens }) => console.log(tokens.length))
    }
    for (let i = 0; i < 3; i++) {
      await new Promise((resolve) => setImmediate(resolve))
      gc()
    }`,
    { nodeOptions: ['--expose-gc'] },
  )
  t.deepEqual([code, stdout, stderr], [0, '300\n', ''])
})

test('process.exit() in the middle of everything gives its exit code', async (t) => {
  const script = `const model = await Mamba.load()
    const options = { maxTokens: 1e6, ignoreEos: true }
    const stream = model.generate('The ship', options)
    const session = model.session()
    session.append(Array(100000).fill(1))
    for (let i = 0; i < 40; i++) model.complete('The ship', options)
    Mamba.load('default', { validate: true })
    let count = 0
    for await (const { token } of stream) if (++count === 20) process.exit(7)`
  for (let i = 0; i < 5; i++) {
    const { code, signal, stderr } = await runChild(script)
    t.deepEqual([code, signal, stderr], [7, null, ''])
  }
})

test('an uncaught error in the middle of everything ends the process as ever', async (t) => {
  const { code, signal, stderr } = await runChild(
    `const model = await Mamba.load()
    setTimeout(() => { throw new Error('mine') }, 100)
    await model.complete('The ship', { maxTokens: 1e6, ignoreEos: true })`,
  )
  t.deepEqual([code, signal], [1, null])
  t.regex(stderr, /Error: mine/)
})

test('a failed generation that nobody looks at is no unhandled rejection', async (t) => {
  const { code, stdout, stderr } = await runChild(
    `const model = await Mamba.load()
    model.generate('x', { maxTokens: 0 })
    model.generate([])
    model.generate('x', { signal: AbortSignal.abort() })
    const stream = model.generate('x', { maxTokens: 1e6, ignoreEos: true })
    for await (const { token } of stream) break
    await model.complete('x', { maxTokens: 2 })
    await model.dispose()
    console.log('end')`,
  )
  t.deepEqual([code, stdout, stderr], [0, 'end\n', ''])
})
