// What runs where: JavaScript's thread stays free, libuv's pool is never used, `threads` is honoured, several
// worker threads may use the addon.
import { performance } from 'node:perf_hooks'
import test from 'ava'
import { runChild } from './helpers/child.js'
import { reference, useModel } from './helpers/model.js'

const model = useModel()

test('the event loop stays free during a long prefill', async (t) => {
  const ids = Array.from({ length: 12_000 }, (_, i) => (i * 31) % 8192)
  let longest = 0
  let turns = 0
  let last = performance.now()
  const beat = setInterval(() => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
    turns++
  }, 1)
  const begin = performance.now()
  await model().forward(ids, { logits: 'last' })
  const prefill = performance.now() - begin
  clearInterval(beat)
  t.true(longest < prefill / 5, `the longest gap was ${longest} ms in ${prefill} ms`)
  t.true(turns > 20)
})

test("libuv's pool is not needed: everything works while its only thread is busy", async (t) => {
  const { code, stdout, stderr } = await runChild(
    `import { pbkdf2 } from 'node:crypto'
    import { tmpdir } from 'node:os'
    let poolIsFree = false
    pbkdf2('a', 'b', 2 ** 31 - 1, 64, 'sha512', () => { poolIsFree = true })
    const file = tmpdir() + '/node-mamba-pool-' + process.pid
    const model = await Mamba.load()
    const { text } = await model.complete('The ship', { maxTokens: 5 })
    await model.embed(['a', 'b'])
    const session = model.session()
    await session.append('The ship')
    await session.save(file)
    const restored = await model.restore(file)
    const again = await restored.generate({ maxTokens: 5 }).result
    await model.dispose()
    process.removeAllListeners()
    ;(await import('node:fs')).rmSync(file)
    console.log(poolIsFree, text === again.text)
    process.kill(process.pid, 'SIGKILL') // nothing else ends the busy thread`,
    { env: { UV_THREADPOOL_SIZE: '1' } },
  )
  t.is(stdout, 'false true\n', stderr)
  t.is(code, null)
})

test('threads is honoured', async (t) => {
  const { stdout, stderr } = await runChild(
    `import { existsSync, readdirSync, readFileSync } from 'node:fs'
    const tasks = '/proc/self/task'
    /** Threads that compute, besides the engine's own; only Linux tells. */
    const helpers = () => existsSync(tasks) ? readdirSync(tasks).filter((id) =>
      readFileSync(tasks + '/' + id + '/comm', 'utf8').startsWith('mamba-cpu')).length : null
    const ids = Array.from({ length: 3000 }, (_, i) => i)
    const results = []
    for (const threads of [1, 4]) {
      const model = await Mamba.load('default', { threads })
      const [cpu, begin] = [process.cpuUsage(), performance.now()]
      await model.forward(ids, { logits: 'last' })
      const used = process.cpuUsage(cpu)
      results.push({ threads: model.threads, helpers: helpers(), busy: (used.user + used.system) / 1000 / (performance.now() - begin) })
      await model.dispose()
    }
    console.log(JSON.stringify(results))`,
  )
  t.is(stderr, '')
  const [one, four] = JSON.parse(stdout) as { threads: number; helpers: number | null; busy: number }[]
  t.is(one!.threads, 1)
  t.is(four!.threads, 4)
  t.true(one!.busy < 1.5, `${one!.busy} processors were busy`)
  if (process.platform === 'linux') t.deepEqual([one!.helpers, four!.helpers], [0, 3])
})

test('several worker threads use the addon at once, and may be ended at any moment', async (t) => {
  const { ids, greedy } = reference.prompts[1]!
  const { code, signal, stdout, stderr } = await runChild(
    `import { Worker } from 'node:worker_threads'
    import { once } from 'node:events'
    const start = (body) => new Worker(
      \`import { parentPort } from 'node:worker_threads'
      import('\${new URL('./dist/index.js', 'file://' + process.cwd() + '/').href}').then(async ({ Mamba }) => { \${body} })\`,
      { eval: true })
    const options = '{ maxTokens: 16, ignoreEos: true }'
    const endless = '{ maxTokens: 1e6, ignoreEos: true }'
    const work = \`const model = await Mamba.load('default', { dtype: 'f32' })
      const { tokens } = await model.complete(${JSON.stringify(ids)}, \${options})
      parentPort.postMessage([...tokens])\`

    const model = await Mamba.load('default', { dtype: 'f32' })
    const mine = model.complete(${JSON.stringify(ids)}, { maxTokens: 16, ignoreEos: true })
    const workers = [start(work), start(work), start(work)]
    const exits = workers.map((worker) => once(worker, 'exit')) // idle handles keep no worker alive
    const all = await Promise.all(workers.map(async (worker) => (await once(worker, 'message'))[0]))
    all.push([...(await mine).tokens])
    await Promise.all(exits)

    const ready = "parentPort.postMessage('ready')"
    for (let i = 0; i < 5; i++) {
      const victims = [
        start(\`const model = await Mamba.load(); model.complete('a', \${endless}).catch(() => {}); \${ready}\`),
        start(\`const model = await Mamba.load()
          let n = 0; for await (const { token } of model.generate('a', \${endless})) if (++n === 5) \${ready}\`),
        start(\`Mamba.load('default', { validate: true }); \${ready}\`),
      ]
      await Promise.all(victims.map((worker) => once(worker, 'message')))
      await Promise.all(victims.map((worker) => worker.terminate()))
    }
    const { tokens } = await model.complete(${JSON.stringify(ids)}, { maxTokens: 16, ignoreEos: true })
    all.push([...tokens])
    console.log(JSON.stringify(all))`,
  )
  t.deepEqual([code, signal], [0, null], stderr)
  const all = JSON.parse(stdout) as number[][]
  t.is(all.length, 5)
  for (const tokens of all) t.deepEqual(tokens, greedy.slice(0, 16))
})
