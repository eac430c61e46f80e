// Several people ask at once, all with the same introduction: it is computed once, they are served in turn, and what the
// engine did is printed. node --import=tsx examples/many-users.ts
import { Mamba } from 'node-mamba'

const introduction = `${'A letter from an old sailor to his friends at home, about the sea and its ships. '.repeat(4)}\n`
const beginnings = ['My dear Watson,', 'The storm', 'At last we', 'You will not believe']

const model = await Mamba.load('default', { maxBatch: 4, maxStall: 50, prefixCache: { bytes: 64e6 } })
try {
  await model.cachePrefix(introduction)
  const ask = (user: string, beginning: string, priority: 'normal' | 'high') =>
    model.complete(introduction + beginning, { maxTokens: 30, temperature: 0.8, seed: 1, user, priority })
  const answers = await Promise.all(
    ['Ada', 'Ben', 'Eve'].flatMap((user) =>
      beginnings.map(async (beginning) => ({
        user,
        beginning,
        ...(await ask(user, beginning, user === 'Eve' ? 'high' : 'normal')),
      })),
    ),
  )
  for (const { user, beginning, text } of answers)
    console.log(`${user}: ${beginning}${text.replaceAll('\n', ' ')}`)

  const saved = answers.reduce((sum, { usage }) => sum + usage.cachedTokens, 0)
  const { meanBatch, timeToFirstToken, interToken } = model.stats()
  console.log(
    `\n${saved} tokens of prompts were not computed again; ${meanBatch.toFixed(1)} sequences a step`,
  )
  console.log(`first token after ${ms(timeToFirstToken.p50)}, then one every ${ms(interToken.p50)}`)
} finally {
  await model.dispose()
}

function ms(seconds: number): string {
  return `${(1000 * seconds).toFixed(1)} ms`
}
