import { setTimeout } from 'node:timers/promises'
import test from 'ava'
import { Mamba, type Priority } from 'node-mamba'
import { failure, useModel } from './helpers/model.js'

const model = useModel()

/**
 * What is asked for meanwhile waits, until `free` sees that so many do. By ids, since texts are tokenized side by side. (The
 * exact order is tested in Rust: answers that come within one turn of the event loop may change places, so a call has to
 * take longer than one.)
 */
async function takeTheSlot(model: Mamba): Promise<{ free: (waiting: number) => Promise<void> }> {
  const holder = new AbortController()
  const stream = model.generate([7], { maxTokens: 1_000_000, ignoreEos: true, signal: holder.signal })
  await stream.next()
  const ended = stream.result.catch(() => {})
  const free = async (waiting: number) => {
    while (model.stats().waiting < waiting) await setTimeout(1)
    holder.abort()
    await ended
  }
  return { free }
}

test('users are served in turn, however many calls each has', async (t) => {
  const one = await Mamba.load('default', { maxBatch: 1 })
  t.teardown(() => one.dispose())
  const order: string[] = []
  const { free } = await takeTheSlot(one)
  const call = async (user: string) => {
    await one.complete([5, 6], { maxTokens: 300, ignoreEos: true, user })
    order.push(user)
  }
  const calls = ['a', 'a', 'a', 'a', 'b', 'b'].map(call)
  await Promise.all([free(calls.length), ...calls])
  t.is(order.slice(4).join(''), 'aa', `${order.join('')}, expected ababaa`)
})

test('the urgent are served first, and the others in between', async (t) => {
  const one = await Mamba.load('default', { maxBatch: 1 })
  t.teardown(() => one.dispose())
  const order: string[] = []
  const { free } = await takeTheSlot(one)
  const call = async (priority: Priority) => {
    await one.complete([5, 6], { maxTokens: 20, priority })
    order.push(priority[0]!)
  }
  const times = (count: number, priority: Priority) => Array.from({ length: count }, () => call(priority))
  const calls = [...times(2, 'low'), ...times(3, 'normal'), ...times(9, 'high')]
  await Promise.all([free(calls.length), ...calls])
  const said = `${order.join('')}, expected hhhhnhhhhnhnll`
  t.true(order.indexOf('l') >= 8, said)
  t.true(order.slice(0, 6).filter((of) => of === 'h').length >= 4, said)
  t.true(order.indexOf('n') < order.lastIndexOf('h'), said)
})

test('every kind of call takes a user and a priority', async (t) => {
  const as = { user: 'someone', priority: 'high' } as const
  t.is((await model().complete('It was', { maxTokens: 1, ...as })).tokens.length, 1)
  t.is((await model().completeBatch(['It was', 'A'], { maxTokens: 1, ...as })).length, 2)
  t.is((await model().forward('It was', { logits: 'last', ...as })).shape[0], 1)
  t.true((await model().score('It was', as)).perplexity > 1)
  t.is((await model().embed(['It was'], as)).length, 1)
  for await (const { vectors } of model().embedStream(['It was'], as)) t.is(vectors.length, 1)
  const session = model().session()
  t.is(await session.append('It was', as), 2)
  t.is((await session.generate({ maxTokens: 3, ...as }).result).tokens.length, 3)
})

test('what is no user and no priority is refused by name', async (t) => {
  await t.throwsAsync(
    model().complete('A', { priority: 'urgent' as Priority }),
    failure('OPTION_INVALID', /urgent/),
  )
  await t.throwsAsync(model().embed('A', { user: 7 as never }), failure('OPTION_INVALID', /`user` is 7/))
  await t.throwsAsync(
    model().score('A b', { usr: 'x' } as never),
    failure('OPTION_INVALID', /did you mean `user`/),
  )
  await t.throwsAsync(Mamba.load('default', { maxStall: 0 }), failure('OPTION_INVALID', /maxStall/))
})

/** With one slot, the other call is answered only if the first one has given it up. */
test('a consumer that stops reading gives its place to others and misses nothing', async (t) => {
  const one = await Mamba.load('default', { maxBatch: 1 })
  t.teardown(() => one.dispose())
  const options = { maxTokens: 2500, ignoreEos: true }
  const expected = (await one.complete('The ship', options)).tokens
  const stream = one.generate('The ship', options)
  const tokens = [(await stream.next()).value!.token]
  await one.complete('It was', { maxTokens: 2 })
  while (one.stats().resting === 0) await setTimeout(5)
  t.is(one.stats().requestsInFlight, 1)
  const before = one.stats().generatedTokensTotal
  await one.complete('It was', { maxTokens: 2 })
  t.is(one.stats().generatedTokensTotal, before + 2, 'it rests')
  for await (const { token } of stream) tokens.push(token)
  t.deepEqual(Uint32Array.from(tokens), expected)
  t.is((await stream.result).finishReason, 'length')
})

test('who rests can be left', async (t) => {
  const one = await Mamba.load('default', { maxBatch: 1 })
  t.teardown(() => one.dispose())
  const stream = one.generate('The ship', { maxTokens: 1e6, ignoreEos: true })
  await stream.next()
  while (one.stats().resting === 0) await setTimeout(5)
  await stream.return()
  await t.throwsAsync(stream.result, failure('ABORTED'))
  t.is(one.stats().requestsInFlight, 0)
})

test('nobody iterates: the result comes all the same', async (t) => {
  const { tokens } = await model().generate('The ship', { maxTokens: 1500, ignoreEos: true }).result
  t.is(tokens.length, 1500)
})
