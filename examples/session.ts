// A context that is kept from run to run: each run of this program goes on with the story of the last one.
// node --import=tsx examples/session.ts story.session
import { existsSync } from 'node:fs'
import { Mamba, type Session } from 'node-mamba'

const file = process.argv[2] ?? 'story.session'
const model = await Mamba.load()
try {
  let session: Session
  if (existsSync(file)) {
    session = await model.restore(file)
  } else {
    session = model.session()
    await session.append('Once upon a time there was')
  }
  for await (const { text } of session.generate({ maxTokens: 40, temperature: 0.7, minP: 0.05 })) {
    process.stdout.write(text)
  }
  await session.save(file)
  console.log(`\n\n${session.tokens} tokens, ${session.byteLength} bytes in ${file}`)
} finally {
  await model.dispose()
}
