// npm run demo [-- "A prompt"]: what node-mamba does, on the default model, in a few seconds.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Mamba } from 'node-mamba'

const prompt = process.argv.slice(2).join(' ') || 'It was a dark and stormy night, and the'
const options = { maxTokens: 120, temperature: 0.8, topP: 0.95, seed: 3 }

const millions = (count: number) => `${(count / 1e6).toFixed(1)} million`
const speed = (tokens: number, seconds: number) =>
  `${Math.round(tokens / seconds).toLocaleString('en')} tokens/s`
// Embeddings have length 1, so their dot product is the cosine of their angle.
const cosine = (a: Float32Array, b: Float32Array) => a.reduce((sum, x, i) => sum + x * b[i]!, 0)
const title = (text: string) => console.log(`\n— ${text} —\n`)

const model = await Mamba.load()
try {
  console.log(
    `Default model: ${millions(model.parameters)} parameters in ${model.dtype}, ` +
      `on ${model.threads} threads of the ${model.device}.`,
  )

  title('A continuation')
  process.stdout.write(prompt)
  const stream = model.generate(prompt, options)
  for await (const { text } of stream) process.stdout.write(text)
  console.log()

  title('Its speed')
  const { usage } = await stream.result
  // A prompt of a line says little about prefill, so it is measured on what was just written, many times over.
  const long = await model.complete(Array(40).fill(prompt).join(' '), { maxTokens: 1 })
  const { promptTokens, prefillSeconds } = long.usage
  console.log(`prefill  ${speed(promptTokens, prefillSeconds)} (${promptTokens} tokens)`)
  // The first token comes out of prefill, so decoding made the others.
  console.log(
    `decode   ${speed(usage.completionTokens - 1, usage.decodeSeconds)} (${usage.completionTokens} tokens)`,
  )

  title('Similarity of sentences, by their embeddings')
  const sentences = [
    'The ship sailed out of the harbour.',
    'The boat left the port with the tide.',
    'She was in love, and would marry him in spring.',
    'He asked for her hand, and she gave it gladly.',
  ]
  const vectors = await model.embed(sentences)
  const width = Math.max(...sentences.map((sentence) => sentence.length))
  for (const [i, sentence] of sentences.entries()) {
    const row = vectors.map((vector) => cosine(vectors[i]!, vector).toFixed(2))
    console.log(`${sentence.padEnd(width)}  ${row.join('  ')}`)
  }

  title('A session, saved and restored')
  const folder = await mkdtemp(join(tmpdir(), 'node-mamba-demo-'))
  try {
    const session = model.session()
    await session.append(prompt)
    await session.generate(options).result
    const file = join(folder, 'demo.session')
    await session.save(file)
    const restored = await model.restore(file)
    console.log(`${session.tokens} tokens of context in ${(session.byteLength / 1024).toFixed(0)} KiB`)

    const next = { ...options, maxTokens: 40 }
    const [original, again] = [await session.generate(next).result, await restored.generate(next).result]
    console.log(`…${original.text}`)
    if (original.text === again.text && original.tokens.join() === again.tokens.join()) {
      console.log('\nOK: the restored session went on identically.')
    } else {
      console.error(`\nThe restored session went on differently: …${again.text}`)
      process.exitCode = 1
    }
  } finally {
    await rm(folder, { recursive: true })
  }
} finally {
  await model.dispose()
}
