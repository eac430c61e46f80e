// Memory: how much a load takes, and that it comes back. In processes of their own, so that nothing else counts.
import { join } from 'node:path'
import test from 'ava'
import { randomTensors, writeConfig, writeSafetensors } from './helpers/checkpoint.js'
import { runChild } from './helpers/child.js'
import { temporaryFolder } from './helpers/folder.js'

const soak = Boolean(process.env.NODE_MAMBA_SOAK)
const linux = process.platform === 'linux'

/** The peak of resident memory so far, in bytes. */
const peak = `import { readFileSync } from 'node:fs'
  const peak = () => 1024 * Number(/VmHWM:\\s*(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1])`

;(linux ? test : test.skip)('a load takes at most 1.2 times the weights', async (t) => {
  const shape = { d_model: 768, n_layer: 24, vocab_size: 50280 } // mamba-130m
  const tensors = randomTensors(shape)
  for (const stored of ['F32', 'BF16'] as const) {
    const folder = temporaryFolder(t)
    writeConfig(folder, shape)
    writeSafetensors(join(folder, 'model.safetensors'), tensors, stored)
    for (const dtype of ['f32', 'bf16']) {
      for (const mmap of [true, false]) {
        const { stdout, stderr } = await runChild(
          `${peak}
          // The addon and a tokenizer are there before, and so is whatever a load needs once.
          await (await Mamba.load()).dispose()
          gc()
          const before = peak()
          const model = await Mamba.load(${JSON.stringify(folder)}, { dtype: '${dtype}', mmap: ${mmap} })
          console.log((peak() - before) / (model.parameters * ${dtype === 'f32' ? 4 : 2}))`,
          { nodeOptions: ['--expose-gc'] },
        )
        t.is(stderr, '')
        t.log(`${stored} to ${dtype}, mmap ${mmap}: ${Number(stdout).toFixed(3)}`)
        t.true(Number(stdout) <= 1.2, `${stored} to ${dtype}, mmap ${mmap}: ${stdout}`)
        t.true(Number(stdout) >= 0.8, 'less than the weights themselves: what was measured?')
      }
    }
  }
})

;(linux ? test : test.skip)(
  'a load that quantizes takes at most 1.3 times the quantized weights',
  async (t) => {
    const shape = { d_model: 768, n_layer: 24, vocab_size: 50280 } // mamba-130m
    const folder = temporaryFolder(t)
    writeConfig(folder, shape)
    writeSafetensors(join(folder, 'model.safetensors'), randomTensors(shape), 'BF16')
    for (const dtype of ['q8_0', 'q4_k']) {
      const { stdout, stderr } = await runChild(
        `${peak}
      await (await Mamba.load()).dispose()
      gc()
      const before = peak()
      const model = await Mamba.load(${JSON.stringify(folder)}, { dtype: '${dtype}' })
      console.log((peak() - before) / model.weightBytes)`,
        { nodeOptions: ['--expose-gc'] },
      )
      t.is(stderr, '')
      t.log(`${dtype}: ${Number(stdout).toFixed(3)}`)
      t.true(Number(stdout) <= 1.3 && Number(stdout) >= 0.8, `${dtype}: ${stdout}`)
    }
  },
)

test('a dropped handle is freed by garbage collection', async (t) => {
  const { stdout, stderr } = await runChild(
    `const rss = []
    let weightBytes
    for (let i = 0; i < 30; i++) {
      const model = await Mamba.load('default', { dtype: 'f32' })
      weightBytes = model.weightBytes
      await model.complete('The ship', { maxTokens: 1 })
      model.session()
      gc()
      await new Promise((resolve) => setTimeout(resolve, 20))
      rss.push(process.memoryUsage.rss())
    }
    // Models held now, beyond those held after the first third.
    console.log((Math.min(...rss.slice(-5)) - Math.max(...rss.slice(5, 10))) / weightBytes)`,
    { nodeOptions: ['--expose-gc'] },
  )
  t.is(stderr, '')
  t.true(Number(stdout) < 3, `20 dropped models, and memory grew by ${stdout} models`)
})

test('dropped sessions are collected for the memory that they hold, though to V8 each is a few bytes', async (t) => {
  const folder = temporaryFolder(t)
  const shape = { d_model: 64, n_layer: 24, vocab_size: 64, ssm_cfg: { d_state: 256 } } // 3 MiB of state
  writeConfig(folder, shape)
  writeSafetensors(join(folder, 'model.safetensors'), randomTensors(shape))
  const { stdout, stderr } = await runChild(
    `const model = await Mamba.load(${JSON.stringify(folder)})
    let most = 0
    for (let i = 0; i < 400; i++) {
      await model.session().append([1, 2])
      most = Math.max(most, process.memoryUsage.rss())
    }
    console.log(most, 400 * model.stateBytes)`,
  )
  t.is(stderr, '')
  const [most, all] = stdout.split(' ').map(Number)
  t.true(most! < all! / 2, `${most} bytes at most, where all sessions together have ${all}`)
  t.log(`${(most! / 2 ** 20).toFixed()} of ${(all! / 2 ** 20).toFixed()} MiB`)
})

test(`${soak ? 1000 : 100} cycles of load, generate, abort, dispose leave memory flat`, async (t) => {
  t.timeout(soak ? 3_600_000 : 120_000)
  const cycles = soak ? 1000 : 100
  const { stdout, stderr } = await runChild(
    `const rss = []
    let weightBytes
    for (let i = 0; i < ${cycles}; i++) {
      const model = await Mamba.load()
      weightBytes = model.weightBytes
      const controller = new AbortController()
      const options = { maxTokens: 1e6, ignoreEos: true, signal: controller.signal }
      const running = Array.from({ length: 4 }, () => model.complete('The ship', options).catch(({ code }) => code))
      let count = 0
      try {
        for await (const { token } of model.generate('The ship', options)) if (++count === 3) controller.abort()
      } catch {}
      const codes = await Promise.all(running)
      if (codes.join() !== 'ABORTED,ABORTED,ABORTED,ABORTED') throw new Error(codes.join())
      await model.dispose()
      if (i % 10 === 9) {
        gc()
        rss.push(process.memoryUsage.rss())
      }
    }
    const quarter = rss.length / 4
    const mean = (values) => values.reduce((a, b) => a + b) / values.length
    console.log(JSON.stringify({ grown: mean(rss.slice(-quarter)) - mean(rss.slice(quarter, 2 * quarter)), weightBytes, rss }))`,
    { nodeOptions: ['--expose-gc'], timeout: soak ? 3_600_000 : 120_000 },
  )
  t.is(stderr, '')
  const { grown, weightBytes, rss } = JSON.parse(stdout) as {
    grown: number
    weightBytes: number
    rss: number[]
  }
  t.log(`resident memory, MiB: ${rss.map((bytes) => Math.round(bytes / 2 ** 20)).join(' ')}`)
  // A cycle that kept a thousandth of what it used would show over a thousand of them as one model.
  t.true(grown < weightBytes, `memory grew by ${grown} bytes`)
})
