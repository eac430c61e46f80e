// Clients that leave, do not read, or send nonsense: they hold up nobody, and shutting down waits for the others.
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { promisify } from 'node:util'
import test from 'ava'
import { Mamba } from 'node-mamba'
import { events, metric, open, raw, testServer, until } from './helpers/server.js'

// A short queue, so that a place that is not freed is missed.
let model: Mamba
test.before(async () => {
  model = await Mamba.load('default', { maxBatch: 8, queueLimit: 12 })
})
test.after.always(() => model?.dispose())

/** Goes on for some seconds; token 0 would end it. */
const long = {
  model: 'novels',
  prompt: 'The ship',
  max_tokens: 4096,
  stream: true,
  logit_bias: { 0: -100 },
}
const short = { model: 'novels', prompt: 'The ship', max_tokens: 3 }

const post = (url: string, body: unknown, signal?: AbortSignal) =>
  fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    ...(signal && { signal }),
  })

const active = (url: string) => metric(url, 'node_mamba_active_requests')

test.serial('the first event comes before the last token is computed', async (t) => {
  const { url } = await testServer(t, model)
  const response = await post(url, long)
  const reader = response.body!.getReader()
  const { value } = await reader.read()
  t.regex(Buffer.from(value!).toString(), /^data: \{/)
  t.is(await active(url), 1)
  await reader.cancel()
  await until(async () => (await active(url)) === 0)
})

test.serial('a client that leaves frees its slot, streaming or not', async (t) => {
  const { url } = await testServer(t, model)
  for (const stream of [true, false]) {
    const before = model.stats().generatedTokensTotal
    // Were they still running, the queue would be full for the next ones.
    for (let i = 0; i < 8; i++) {
      const controller = new AbortController()
      const asked = post(url, { ...long, stream, n: 2 }, controller.signal)
      if (stream) await (await asked).body!.getReader().read()
      else await until(async () => (await active(url)) === 1)
      controller.abort()
      await asked.catch(() => {})
      await until(async () => (await active(url)) === 0)
    }
    // Not by answering it to its end.
    t.true(model.stats().generatedTokensTotal - before < (8 * 2 * long.max_tokens) / 4)
  }
  const response = await post(url, { ...short, n: 12 })
  t.is(response.status, 200)
})

test.serial('a client that leaves while it waits in the queue', async (t) => {
  const { url } = await testServer(t, model)
  const running = new AbortController()
  await Promise.all([
    post(url, { ...long, n: 4 }, running.signal),
    post(url, { ...long, n: 4 }, running.signal),
  ])
  const waiting = new AbortController()
  const asked = post(url, { ...short, n: 2 }, waiting.signal)
  await until(async () => (await active(url)) === 3)
  waiting.abort()
  await t.throwsAsync(asked, { any: true })
  await until(async () => (await active(url)) === 2)
  await until(() => model.stats().waiting === 0)
  t.is(await active(url), 2) // so it was not for the end of the others that it left
  running.abort()
  await until(async () => (await active(url)) === 0)
  t.is((await post(url, short)).status, 200)
})

test.serial('clients that never read are disconnected, and hold up nobody', async (t) => {
  const { url, port } = await testServer(t, model, { limits: { stallSeconds: 1 } })
  // Some 20 MB, more than the sockets' buffers take: each token comes with the 20 likeliest ones.
  const asked = raw('/v1/completions', { ...long, logprobs: 20, n: 4 })
  const sockets = await Promise.all(
    Array.from({ length: 2 }, async () => {
      const socket = await open(port)
      socket.pause()
      socket.write(asked)
      return socket
    }),
  )
  await until(async () => (await active(url)) === 2)
  const others = await post(url, short)
  t.is(others.status, 200)
  await until(async () => (await active(url)) === 0)
  t.is(await metric(url, 'node_mamba_stalled_total'), 2)
  t.is((await post(url, { ...short, n: 12 })).status, 200)
  for (const socket of sockets) socket.destroy()
})

test.serial('a client that reads slowly gets everything', async (t) => {
  const { url } = await testServer(t, model, { limits: { stallSeconds: 2 } })
  const response = await post(url, { ...long, max_tokens: 300, logprobs: 5, seed: 4 })
  let text = ''
  const decoder = new TextDecoder()
  for await (const chunk of response.body!) {
    text += decoder.decode(chunk, { stream: true })
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  const parts = events(text)
  t.is(parts.at(-1), '[DONE]')
  const expected = await model.complete('The ship', {
    maxTokens: 300,
    temperature: 1,
    seed: 4,
    logitBias: { 0: -100 },
  })
  t.is(
    parts
      .slice(0, -1)
      .map(({ choices }) => choices[0].text)
      .join(''),
    expected.text,
  )
})

test.serial('nonsense instead of HTTP, and requests that stop half-way', async (t) => {
  const { url, port } = await testServer(t, model)
  const nonsense = await open(port)
  nonsense.write('\x00\x01nonsense\r\n\r\n')
  const [answer] = (await once(nonsense, 'data')) as [Buffer]
  t.regex(answer.toString(), /^HTTP\/1\.1 400 /)

  const half = await open(port)
  half.write(raw('/v1/completions', short).slice(0, -5))
  await until(async () => (await active(url)) === 1)
  half.destroy()
  await until(async () => (await active(url)) === 0)

  const tooLarge = await open(port)
  tooLarge.write('POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n')
  tooLarge.write(`Content-Length: ${2 ** 40}\r\n\r\n{`)
  const [refusal] = (await once(tooLarge, 'data')) as [Buffer]
  t.regex(refusal.toString(), /^HTTP\/1\.1 413 [^]*body_too_large/)
  tooLarge.destroy()
  t.is((await post(url, short)).status, 200)
})

test.serial('a client that is still sending too large a body gets the answer', async (t) => {
  const { url } = await testServer(t, model)
  // A process of its own, so that it sends while the server answers.
  const client = `
    for (let i = 0; i < 12; i++) {
      const headers = { 'content-type': 'application/json' }
      const answer = await fetch('${url}/v1/completions', { method: 'POST', headers, body: 'x'.repeat(6e6) })
      console.log(answer.status, (await answer.json()).error.code)
    }`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', client], {
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  t.deepEqual(stdout.trim().split('\n'), Array(12).fill('413 body_too_large'))
  t.is((await post(url, short)).status, 200)
})

test.serial('one that does not say how large its body is gets the answer, too', async (t) => {
  const { url } = await testServer(t, model, { limits: { bodyBytes: 100_000 } })
  const client = `
    const block = 'x'.repeat(65536)
    for (let i = 0; i < 12; i++) {
      let left = 32
      const pull = (controller) => (left-- > 0 ? controller.enqueue(block) : controller.close())
      const body = new ReadableStream({ pull }).pipeThrough(new TextEncoderStream())
      const headers = { 'content-type': 'application/json' }
      const answer = await fetch('${url}/v1/completions', { method: 'POST', headers, body, duplex: 'half' })
      console.log(answer.status, (await answer.json()).error.code)
    }`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', client], {
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  t.deepEqual(stdout.trim().split('\n'), Array(12).fill('413 body_too_large'))
  t.is((await post(url, short)).status, 200)
})

test.serial('shutting down lets what is under way end, and takes nothing new', async (t) => {
  const server = await testServer(t, model, { drainSeconds: 60 })
  const { url, port } = server
  const idle = await open(port) // asks nothing, ever
  const keptAlive = await open(port)
  keptAlive.write('GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n')
  t.regex(String((await once(keptAlive, 'data'))[0]), /^HTTP\/1\.1 200 /)
  const response = await post(url, { ...long, max_tokens: 800 })
  const reader = response.body!.getReader()
  let text = Buffer.from((await reader.read()).value!).toString()

  const closed = server.close()
  // A connection that was there already is told; new ones find nobody.
  await t.throwsAsync(post(url, short))
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    text += Buffer.from(value).toString()
  }
  t.is(events(text).at(-1), '[DONE]')
  t.is(events(text).at(-2).choices[0].finish_reason, 'length')
  await closed
  idle.destroy()
  keptAlive.destroy()
  t.is(await server.close(), undefined)
})

test.serial('shutting down ends what takes too long, and says so', async (t) => {
  const server = await testServer(t, model, { drainSeconds: 0.2 })
  const response = await post(server.url, long)
  const closed = server.close()
  const last = events(await response.text()).at(-1)
  t.is(last.error.code, 'shutting_down')
  await closed
})

test.serial('a server that drains is not ready', async (t) => {
  const { createApp } = await import('node-mamba/server')
  const { app, close } = await createApp({ models: { novels: model } })
  const asked = (path: string, body?: unknown) =>
    app.request(path, {
      ...(body !== undefined && { method: 'POST', body: JSON.stringify(body) }),
      headers: { 'content-type': 'application/json' },
    })
  const streaming = await asked('/v1/completions', long)
  const closed = close(0.1)
  t.is((await asked('/ready')).status, 503)
  t.is((await asked('/health')).status, 200)
  const refused = await asked('/v1/completions', short)
  t.is(refused.status, 503)
  t.is(((await refused.json()) as { error: { code: string } }).error.code, 'shutting_down')
  await streaming.text()
  await closed
})

/** More than the buffers between a server and its client take, soon. */
const much = { ...long, logprobs: 20, n: 4 }

test.serial('shutting down does not wait for a client that does not read', async (t) => {
  const server = await testServer(t, model, { drainSeconds: 0.2, limits: { stallSeconds: 100_000 } })
  const socket = await open(server.port)
  socket.pause()
  socket.write(raw('/v1/completions', much))
  await until(async () => (await active(server.url)) === 1)
  await until(() => model.stats().running === 0) // all is computed, and waits
  await server.close()
  t.is(model.stats().running, 0)
  socket.destroy()
})

test.serial(
  'mounted where nothing is known of the connection: a stream that nobody reads ends',
  async (t) => {
    const { createApp } = await import('node-mamba/server')
    const unread = async (limits: { stallSeconds: number }) => {
      const { app, close } = await createApp({ models: { novels: model }, limits })
      const body = JSON.stringify(much)
      const headers = { 'content-type': 'application/json' }
      const response = await app.request('/v1/completions', { method: 'POST', headers, body })
      t.is(response.status, 200)
      return { app, close, response }
    }
    const stalled = await unread({ stallSeconds: 0.1 })
    await until(async () => {
      const metrics = await (await stalled.app.request('/metrics')).text()
      return (
        metrics.includes('node_mamba_active_requests 0') && metrics.includes('node_mamba_stalled_total 1')
      )
    })
    await stalled.close()
    const closed = await unread({ stallSeconds: 100_000 })
    await closed.close(0.1)
    t.is(events(await closed.response.text()).at(-1).error.code, 'shutting_down')
  },
)
