// Teaches the default model to write shipping forecasts: a low-rank adapter, trained in seconds, chosen by request.
// node --import=tsx examples/train.ts [folder]
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Mamba, train } from 'node-mamba'

const areas = [
  'Viking',
  'Forties',
  'Dogger',
  'Fisher',
  'Humber',
  'Thames',
  'Dover',
  'Wight',
  'Plymouth',
  'Fastnet',
]
const winds = ['northerly four or five', 'southwest five to seven', 'variable three', 'westerly gale eight']

/** Any async iterable of texts will do: rows of a database, lines of a socket. */
async function* forecasts() {
  for (let i = 0; i < 200; i++) {
    const [area, wind] = [areas[(7 * i) % areas.length]!, winds[(3 * i + (i >> 3)) % winds.length]!]
    yield `${area}: ${wind}. ${i % 3 ? 'Rain at times.' : 'Fair.'} ${i % 4 ? 'Good' : 'Moderate or poor'}.\n`
  }
}

const run = train({
  out: process.argv[2] ?? join(mkdtempSync(join(tmpdir(), 'node-mamba-')), 'forecasts'),
  model: 'default',
  data: forecasts(),
  adapter: { kind: 'lora', rank: 8 },
  batch: { size: 2, length: 128 },
  optimizer: { lr: 5e-3, weightDecay: 0 },
  schedule: { warmup: 3 },
  validation: { fraction: 0.1, every: 10 },
  steps: 30,
})
for await (const { step, loss, validationLoss } of run) {
  if (validationLoss !== undefined) {
    console.log(`step ${step}: loss ${loss?.toFixed(3)}, held out ${validationLoss.toFixed(3)}`)
  }
}

const { adapter } = await run.result
const model = await Mamba.load('default', { adapters: { forecasts: adapter! } })
try {
  const options = { maxTokens: 24, stop: ['\n'] }
  // Both in one batch, over the same weights.
  const [plain, taught] = await Promise.all([
    model.complete('Fisher:', options),
    model.complete('Fisher:', { ...options, adapter: 'forecasts' }),
  ])
  console.log(`without the adapter: Fisher:${plain.text}`)
  console.log(`with it:             Fisher:${taught.text}`)
} finally {
  await model.dispose()
}
