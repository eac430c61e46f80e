// Which of some texts is nearest to a question?
// node --import=tsx examples/embed.ts "a sea voyage"
import { Mamba } from 'node-mamba'

const question = process.argv[2] ?? 'a sea voyage'
const texts = [
  'The sailors hauled up the anchor and set out for the islands.',
  'The old lawyer read the will aloud to the family.',
  'Snow had fallen on the moor, and the road was gone.',
]

const model = await Mamba.load()
try {
  const target = await model.embed(question)
  // A stream takes any number of texts, from an array or from whatever yields them, in bounded memory.
  const found: { text: string; similarity: number }[] = []
  for await (const batch of model.embedStream(texts, { batchSize: 2 })) {
    batch.vectors.forEach((vector, i) => {
      const similarity = vector.reduce((sum, x, j) => sum + x * target[j]!, 0)
      found.push({ text: batch.texts[i]!, similarity })
    })
  }
  found.sort((a, b) => b.similarity - a.similarity)
  for (const { text, similarity } of found) console.log(similarity.toFixed(3), text)
} finally {
  await model.dispose()
}
