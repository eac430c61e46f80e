// node node-llama-cpp.mjs MODULE MODEL.gguf THREADS: node-llama-cpp's embeddings, by the same lines as the other
// contestants (`embed FILE`).
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const [module, modelPath, threads] = process.argv.slice(2)
const { getLlama } = await import(pathToFileURL(resolve(module)).href)
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: Number(threads), logLevel: 'error' })
const model = await llama.loadModel({ modelPath: resolve(modelPath) })
const context = await model.createEmbeddingContext({ contextSize: 2048, threads: Number(threads) })
console.log(JSON.stringify({ weightBytes: model.size, system: llama.systemInfo }))

for await (const line of createInterface({ input: process.stdin })) {
  const texts = readFileSync(line.replace(/^embed /, ''), 'utf8')
    .trimEnd()
    .split('\n')
  const began = performance.now()
  await Promise.all(texts.map((text) => context.getEmbeddingFor(text)))
  const seconds = (performance.now() - began) / 1000
  const tokens = texts.reduce((sum, text) => sum + model.tokenize(text).length, 0)
  const answer = {
    tokens,
    seconds,
    tokensPerSecond: tokens / seconds,
    textsPerSecond: texts.length / seconds,
  }
  console.log(JSON.stringify(answer))
}
process.exit()
