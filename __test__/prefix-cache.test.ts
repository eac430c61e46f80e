import test from 'ava'
import { Mamba } from 'node-mamba'
import { failure, reference, useModel } from './helpers/model.js'

const plain = useModel()
const system = `${reference.prompts[2]!.text.slice(0, 600)}\n`
const questions = ['Who is there?', 'What is the ship called?', 'Where did they go?', 'When?']

async function cached() {
  return Mamba.load('default', { prefixCache: { bytes: 64e6 } })
}

test('a beginning that prompts share is computed twice, then never again; the answers stay the same', async (t) => {
  const model = await cached()
  t.teardown(() => model.dispose())
  const shared = model.tokenizer.encode(system).length
  for (const [i, question] of questions.entries()) {
    for (const options of [{ maxTokens: 20 }, { maxTokens: 20, temperature: 1, seed: 3 }]) {
      const answer = await model.complete(system + question, options)
      const expected = await plain().complete(system + question, options)
      t.deepEqual(
        [answer.text, answer.tokens, answer.logprobs],
        [expected.text, expected.tokens, expected.logprobs],
      )
      t.is(answer.usage.promptTokens, expected.usage.promptTokens)
      t.is(expected.usage.cachedTokens, 0)
      if (i > 1) t.true(answer.usage.cachedTokens >= shared, `${answer.usage.cachedTokens} of ${shared}`)
    }
  }
  const { lookups, hits, states, bytes } = model.stats().prefixCache
  t.is(lookups, 8)
  t.true(hits >= 5 && states >= 1 && bytes > model.stateBytes && bytes <= 64e6)
})

test('cachePrefix does it beforehand, for sessions too', async (t) => {
  const model = await cached()
  t.teardown(() => model.dispose())
  const tokens = await model.cachePrefix(system)
  t.is(tokens, model.tokenizer.encode(system).length)
  const { usage } = await model.complete(system + questions[0]!, { maxTokens: 1 })
  t.is(usage.cachedTokens, tokens)
  const computed = model.stats().promptTokensTotal
  const session = model.session()
  await session.append(system + questions[1]!)
  t.true(model.stats().promptTokensTotal - computed < 20)
  const expected = await plain().complete(system + questions[1]!, { maxTokens: 10 })
  t.is((await session.generate({ maxTokens: 10 }).result).text, expected.text)
})

test('what cannot be is refused by name', async (t) => {
  await t.throwsAsync(plain().cachePrefix(system), failure('OPTION_INVALID', /prefixCache\.bytes/))
  const load = (prefixCache: unknown) => Mamba.load('default', { prefixCache } as never)
  await t.throwsAsync(load(64e6), failure('OPTION_INVALID', /`prefixCache` is 64000000/))
  await t.throwsAsync(load({ bytes: -1 }), failure('OPTION_INVALID', /`prefixCache.bytes` is -1/))
  await t.throwsAsync(load({ bites: 1 }), failure('OPTION_INVALID', /bites/))
  await t.throwsAsync(load({ bytes: 1000 }), failure('OPTION_INVALID', /bytes of one state/))
})
