// The README's first example.
import { Mamba } from 'node-mamba'

const model = await Mamba.load()
try {
  for await (const { text } of model.generate('The ship', { maxTokens: 60 })) process.stdout.write(text)
  console.log()
} finally {
  await model.dispose()
}
