// Many requests, with slow, dead and malformed clients among them: memory stays flat, and nothing is stuck. In full
// length (10,000 requests) with NODE_MAMBA_SOAK=1.
import { spawn, type ChildProcess } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { events, metric, open, plainTemplate, raw, until } from './helpers/server.js'

const soak = process.env.NODE_MAMBA_SOAK === '1'
const requests = soak ? 10_000 : 1000
/** At a time, besides the bad ones. */
const concurrency = 24

/** The server, in a process of its own, whose memory is the server's alone. */
const source = `
import { ChatTemplate, Mamba } from './dist/index.js'
import { MemorySessions, serve } from './dist/lib/server/index.js'
const template = await ChatTemplate.from(${JSON.stringify(plainTemplate)})
const server = await serve({
  models: { novels: await Mamba.load('default') },
  chatTemplates: { novels: template },
  port: 0,
  limits: { stallSeconds: 2, requestSeconds: 60 },
  // Full long before the memory is measured for the first time.
  sessions: new MemorySessions({ maxBytes: 16 * 2 ** 20 }),
})
process.on('message', async (message) => {
  if (message === 'close') {
    await server.close()
    process.send('closed')
    process.exit()
  }
  for (let i = 0; i < 3; i++) {
    gc()
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const { heapUsed, external, rss } = process.memoryUsage()
  process.send({ heap: heapUsed + external, rss })
})
process.send(server.port)
`

function start(): ChildProcess {
  return spawn(process.execPath, ['--expose-gc', '--input-type=module', '-e', source], {
    cwd: fileURLToPath(new URL('..', import.meta.url)),
    env: { ...process.env, NODE_OPTIONS: '' },
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
}

const answered = <T>(child: ChildProcess, message?: string) =>
  new Promise<T>((resolve, reject) => {
    const ended = (code: number | null) => reject(new Error(`the server ended with ${code}`))
    child.once('exit', ended)
    child.once('message', (answer) => {
      child.off('exit', ended)
      resolve(answer as T)
    })
    if (message !== undefined) child.send(message)
  })

const common = { model: 'novels', max_tokens: 16, logit_bias: { 0: -100 } }

test('memory is flat, and none is stuck', async (t) => {
  t.timeout(30 * 60_000)
  const child = start()
  t.teardown(() => child.kill('SIGKILL'))
  const port = await answered<number>(child)
  const url = `http://127.0.0.1:${port}`
  const post = (path: string, body: unknown, signal?: AbortSignal) =>
    fetch(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: typeof body === 'string' ? body : JSON.stringify(body),
      ...(signal && { signal }),
    })
  const counts = new Map<string, number>()
  const count = (kind: string) => counts.set(kind, (counts.get(kind) ?? 0) + 1)

  /** What a well-behaved client asks, and what it has to get. */
  const good: ((i: number) => Promise<void>)[] = [
    async (i) => {
      const answer = (await (
        await post('/v1/completions', { ...common, prompt: `Chapter ${i}` })
      ).json()) as {
        usage: { completion_tokens: number }
      }
      t.is(answer.usage.completion_tokens, 16)
      count('completion')
    },
    async (i) => {
      const body = { ...common, prompt: `Chapter ${i}`, stream: true, logprobs: i % 3, n: 2 }
      t.is(events(await (await post('/v1/completions', body)).text()).at(-1), '[DONE]')
      count('stream')
    },
    async (i) => {
      const messages = [{ role: 'user', content: `Tell me of chapter ${i}.` }]
      const answer = await post('/v1/chat/completions', { ...common, messages, session: `s${i % 400}` })
      // Another request may be using the same session.
      t.true(answer.status === 200 || answer.status === 409)
      await answer.text()
      count('chat with a session')
    },
    async (i) => {
      const answer = await post('/v1/embeddings', { model: 'novels', input: [`Chapter ${i}`, 'The sea'] })
      t.is(((await answer.json()) as { data: unknown[] }).data.length, 2)
      count('embedding')
    },
  ]
  const bad: ((i: number) => Promise<void>)[] = [
    async () => {
      t.is((await post('/v1/completions', '{"model":')).status, 400)
      count('malformed JSON')
    },
    async () => {
      t.is((await post('/v1/chat/completions', '['.repeat(100_000))).status, 400)
      count('deep JSON')
    },
    async () => {
      const socket = await open(port)
      socket.end('nonsense\r\n\r\n')
      await new Promise((resolve) => socket.resume().once('close', resolve))
      count('malformed HTTP')
    },
    async () => {
      const socket = await open(port)
      socket.write(raw('/v1/completions', { ...common, prompt: 'The ship' }).slice(0, -3))
      socket.destroy()
      count('half a request')
    },
    async (i) => {
      const leaving = new AbortController()
      const body = { ...common, prompt: 'The ship', max_tokens: 2000, stream: true }
      const answer = await post('/v1/completions', body, leaving.signal)
      if (i % 2 === 0) await answer.body!.getReader().read()
      leaving.abort()
      count('leaves half-way')
    },
    async () => {
      const answer = await post('/v1/completions', {
        ...common,
        prompt: 'The ship',
        max_tokens: 60,
        stream: true,
      })
      for await (const _ of answer.body!) await new Promise((resolve) => setTimeout(resolve, 20))
      count('reads slowly')
    },
  ]
  /** Never reads, and is cut off by the server. */
  const dead = async () => {
    const socket = await open(port)
    socket.pause()
    // Some 20 MB, more than the sockets' buffers take.
    const body = { ...common, prompt: 'The ship', max_tokens: 4000, logprobs: 20, n: 4, stream: true }
    socket.write(raw('/v1/completions', body))
    count('never reads')
    return socket
  }

  let next = 0
  /** Asks until `end` requests have been made. */
  const run = async (end: number) => {
    const sockets = [await dead(), await dead()]
    await Promise.all(
      Array.from({ length: concurrency }, async () => {
        while (next < end) {
          const i = next++
          if (i % 5 === 4) await bad[Math.floor(i / 5) % bad.length]!(i)
          else await good[i % good.length]!(i)
        }
      }),
    )
    await until(async () => (await metric(url, 'node_mamba_active_requests')) === 0)
    t.is(await metric(url, 'node_mamba_stalled_total'), counts.get('never reads')!)
    for (const socket of sockets) socket.destroy()
  }

  const begin = performance.now()
  await run(requests / 4)
  const before = await answered<{ heap: number; rss: number }>(child, 'memory')
  await run(requests)
  const after = await answered<{ heap: number; rss: number }>(child, 'memory')

  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`
  const seconds = Math.round((performance.now() - begin) / 1000)
  t.log(`${requests} requests in ${seconds} s: ${[...counts].map(([kind, n]) => `${n} ${kind}`).join(', ')}`)
  t.log(
    `heap ${mib(before.heap)} then ${mib(after.heap)}, resident ${mib(before.rss)} then ${mib(after.rss)}`,
  )
  // What 7,500 requests (750 in CI) leave behind: nothing, but for names of tokens and Node's own caches.
  t.true(after.heap - before.heap < 8 * 2 ** 20, `${mib(before.heap)} then ${mib(after.heap)}`)
  t.true(after.rss - before.rss < 64 * 2 ** 20, `${mib(before.rss)} then ${mib(after.rss)}`)
  t.is((await post('/v1/completions', { ...common, prompt: 'The end' })).status, 200)
  t.is(await answered(child, 'close'), 'closed')
})
