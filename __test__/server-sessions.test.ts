// A session of the server: a later request computes only what is new, and answers as if it had computed it all.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { DiskSessions, MemorySessions, RedisSessions, type SessionStore } from 'node-mamba/server'
import { temporaryFolder } from './helpers/folder.js'
import { useModel } from './helpers/model.js'
import { events, plainTemplate, testApp, until } from './helpers/server.js'

const model = useModel()
const common = { model: 'novels', max_tokens: 8, temperature: 0.8, seed: 3 }
type Post = Awaited<ReturnType<typeof testApp>>['post']

/** What was said, and how much of it was computed. */
async function complete(post: Post, body: object) {
  const { status, body: answer } = await post('/v1/completions', { ...common, ...body })
  return status === 200
    ? {
        text: answer.choices[0].text as string,
        prompt: answer.usage.prompt_tokens as number,
        cached: answer.usage.prompt_tokens_details.cached_tokens as number,
      }
    : { status, code: answer.error.code as string }
}

const length = (text: string) => model().tokenizer.encode(text).length

/** Every place keeps the same promises. */
async function keeps(t: ExecutionContext, store: () => SessionStore) {
  const prompts = ['Once upon a time there was', ' The ship', ' And then']
  // The library's own session is what the answers are held to.
  const session = model().session()
  const { post } = await testApp(t, model(), { sessions: store() })
  let known = 0
  for (const prompt of prompts) {
    const added = await session.append(prompt)
    const { text } = await session.generate({ maxTokens: 8, temperature: 0.8, seed: 3 }).result
    t.deepEqual(await complete(post, { prompt, session: 'story' }), {
      text,
      prompt: known + added,
      cached: known,
    })
    known = session.tokens
  }
  // An empty prompt goes on.
  const { text } = await session.generate({ maxTokens: 8, temperature: 0.8, seed: 3 }).result
  t.deepEqual(await complete(post, { prompt: '', session: 'story' }), { text, prompt: known, cached: known })
  // Another name is another session.
  t.like(await complete(post, { prompt: 'My dear', session: 'other' }), { cached: 0 })
  const { send } = await testApp(t, model(), { sessions: store() })
  t.is((await send('/v1/sessions/other', { method: 'DELETE' })).status, 200)
  t.is((await send('/v1/sessions/other', { method: 'DELETE' })).status, 404)
}

test('in memory', async (t) => {
  const store = new MemorySessions()
  await keeps(t, () => store)
})

test('in memory: those used last, by their size', async (t) => {
  const bytes = (model().session().byteLength + 1000) * 2.5 // two of them
  const { post } = await testApp(t, model(), { sessions: new MemorySessions({ maxBytes: bytes }) })
  const cached = async (session: string) => (await complete(post, { prompt: ' a', session })).cached
  for (const session of ['a', 'b', 'a', 'c']) await cached(session)
  t.true((await cached('a'))! > 0)
  t.is(await cached('b'), 0)
  t.is(await cached('c'), 0) // b took its place
})

test('on disk: outliving the server, under names that are digests', async (t) => {
  const folder = join(temporaryFolder(t), 'sessions')
  await keeps(t, () => new DiskSessions(folder))
  const files = readdirSync(folder)
  t.is(files.length, 1)
  t.regex(files[0]!, /^[0-9a-f]{64}\.session$/)
  t.is(statSync(join(folder, files[0]!)).mode & 0o777, 0o600)
  const { post } = await testApp(t, model(), { sessions: new DiskSessions(folder) })
  t.true((await complete(post, { prompt: '', session: 'story' })).cached! > 0)
})

test('on disk: those used last, by their size, from run to run', async (t) => {
  const folder = temporaryFolder(t)
  const maxBytes = (model().session().byteLength + 1000) * 2.5
  writeFileSync(join(folder, 'yours.txt'), 'not a session')
  const { post } = await testApp(t, model(), { sessions: new DiskSessions(folder, { maxBytes }) })
  for (const session of ['a', 'b']) {
    await complete(post, { prompt: ' a', session })
    await new Promise((resolve) => setTimeout(resolve, 20)) // files' times are how a later run knows their order
  }
  const later = (await testApp(t, model(), { sessions: new DiskSessions(folder, { maxBytes }) })).post
  await complete(later, { prompt: ' a', session: 'c' })
  t.is((await complete(later, { prompt: ' a', session: 'a' })).cached, 0)
  t.is(readdirSync(folder).filter((name) => name.endsWith('.session')).length, 2)
  t.true(existsSync(join(folder, 'yours.txt')))
})

test('on disk: damage is found, and a place that is not there', async (t) => {
  const folder = temporaryFolder(t)
  const { post, send } = await testApp(t, model(), { sessions: new DiskSessions(folder) })
  const body = { prompt: 'Once', session: 'a' }
  await complete(post, body)
  const file = join(folder, readdirSync(folder)[0]!)
  const whole = readFileSync(file)
  for (const damaged of [
    whole.subarray(0, whole.length - 1),
    whole.subarray(0, 3),
    Buffer.alloc(100, 255),
    Buffer.alloc(0),
  ]) {
    writeFileSync(file, damaged)
    t.deepEqual(await complete(post, body), { status: 409, code: 'session_invalid' })
  }
  const flipped = Buffer.from(whole)
  flipped[whole.length - 100]! ^= 1
  writeFileSync(file, flipped)
  t.deepEqual(await complete(post, body), { status: 409, code: 'session_invalid' })
  t.is((await send('/v1/sessions/a', { method: 'DELETE' })).status, 200)
  t.like(await complete(post, body), { cached: 0 })

  const blocked = join(folder, 'blocked')
  writeFileSync(blocked, 'a file where a folder should be')
  const lost = await testApp(t, model(), { sessions: new DiskSessions(blocked) })
  t.deepEqual(await complete(lost.post, body), { status: 503, code: 'session_store_unavailable' })
  t.is((await lost.post('/v1/completions', { ...common, prompt: 'Once' })).status, 200)
})

test('half a file that a crash left is removed at the next start, and nothing that is not the store’s', async (t) => {
  const folder = temporaryFolder(t)
  const half = join(folder, `${'0'.repeat(64)}.session.new`)
  writeFileSync(half, 'half')
  const foreign = ['mine.session', 'mine.session.new']
  for (const name of foreign) writeFileSync(join(folder, name), 'x'.repeat(1e6))
  const { post } = await testApp(t, model(), { sessions: new DiskSessions(folder, { maxBytes: 999_999 }) })
  await complete(post, { prompt: 'Once', session: 'a' })
  t.false(existsSync(half))
  t.is(readdirSync(folder).filter((name) => !foreign.includes(name)).length, 1)
  for (const name of foreign) t.true(existsSync(join(folder, name)), name)
})

test('a client that leaves while its session is saved: it is busy until it is', async (t) => {
  const store = new MemorySessions()
  let saved = () => {}
  const saving = new Promise<void>((began) => {
    const { set } = store
    store.set = async (key, value) => {
      began()
      await new Promise<void>((resolve) => (saved = resolve))
      store.set = set
      await store.set(key, value)
    }
  })
  const { app, post } = await testApp(t, model(), { sessions: store })
  const streaming = await app.request('/v1/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...common, prompt: 'Once', session: 'a', stream: true }),
  })
  const reader = streaming.body!.getReader()
  void (async () => {
    while (!(await reader.read().catch(() => ({ done: true }))).done);
  })()
  await saving
  await reader.cancel()
  t.deepEqual(await complete(post, { prompt: ' x', session: 'a' }), { status: 409, code: 'session_busy' })
  saved()
  let later
  do later = await complete(post, { prompt: ' x', session: 'a' })
  while ('code' in later && later.code === 'session_busy')
  t.true(later.cached! > 0)
})

test('of another model, or of the same name with other weights', async (t) => {
  const store = new MemorySessions()
  const models = { novels: model(), second: model() }
  const { post } = await testApp(t, model(), { models, sessions: store })
  await complete(post, { prompt: 'Once', session: 'a' })
  t.deepEqual(await complete(post, { prompt: 'Once', session: 'a', model: 'second' }), {
    status: 409,
    code: 'session_mismatch',
  })
})

test('one request at a time; one that fails or leaves changes nothing', async (t) => {
  const sessions = new MemorySessions()
  const { post: patiently } = await testApp(t, model(), { sessions })
  const { post, app } = await testApp(t, model(), { sessions, limits: { requestSeconds: 1 } })
  const first = await complete(patiently, { prompt: 'Once upon a time', session: 'a' })
  const slow = {
    ...common,
    prompt: ' and',
    session: 'a',
    max_tokens: 4096,
    logit_bias: { 0: -100 },
    stream: true,
  }
  const leaving = new AbortController()
  const streaming = await app.request('/v1/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(slow),
    signal: leaving.signal,
  })
  t.is(streaming.status, 200)
  t.deepEqual(await complete(post, { prompt: ' x', session: 'a' }), { status: 409, code: 'session_busy' })
  t.is((await app.request('/v1/sessions/a', { method: 'DELETE' })).status, 409)
  leaving.abort()
  await streaming.text()
  const { body } = await post('/v1/completions', slow) // ends by the limit
  t.is(events(body).at(-1).error.code, 'timeout')
  t.deepEqual(await complete(post, { prompt: [9000], session: 'a' }), {
    status: 400,
    code: 'token_out_of_range',
  })
  const second = await complete(patiently, { prompt: ' and', session: 'a' })
  t.is(second.cached, first.prompt! + 8)
})

test('a session belongs to the key that made it', async (t) => {
  const { post } = await testApp(t, model(), { apiKeys: ['one', 'two'] })
  const cached = async (key: string) => {
    const body = { ...common, prompt: 'Once', session: 'a' }
    const answer = await post('/v1/completions', body, { authorization: `Bearer ${key}` })
    return answer.body.usage.prompt_tokens_details.cached_tokens as number
  }
  t.is(await cached('one'), 0)
  t.is(await cached('two'), 0)
  t.true((await cached('one')) > 0)
})

test('a chat sends all of its messages, and computes the new ones', async (t) => {
  const { post } = await testApp(t, model())
  const ask = async (messages: object[], more: object = {}) => {
    const { body } = await post('/v1/chat/completions', { ...common, messages, ...more })
    return {
      text: body.choices[0].message.content as string,
      prompt: body.usage.prompt_tokens as number,
      cached: body.usage.prompt_tokens_details.cached_tokens as number,
    }
  }
  const messages: { role: string; content: string }[] = []
  let before = 0
  for (const [i, said] of ['Tell me of the sea.', 'And then?', 'How does it end?'].entries()) {
    messages.push({ role: 'user', content: said })
    const whole = await ask(messages)
    const kept = await ask(messages, { session: 'talk' })
    t.is(whole.cached, 0)
    t.is(kept.text, whole.text)
    t.is(kept.cached, before)
    t.is(
      kept.prompt - kept.cached,
      length(i === 0 ? `user:\n${said}\nassistant:\n` : `\nuser:\n${said}\nassistant:\n`),
    )
    before = kept.prompt + 8
    messages.push({ role: 'assistant', content: kept.text })
  }
  // The last answer again: nothing is computed, and without a seed it is another one.
  const again = await ask(messages.slice(0, -1), { session: 'talk' })
  t.is(again.cached, again.prompt)
  t.is(again.text, messages.at(-1)!.content)
  const another = await ask(messages.slice(0, -1), { session: 'talk', seed: undefined, temperature: 1.5 })
  t.is(another.cached, another.prompt)
  t.not(another.text, again.text)
  // What was said is changed: it is a new conversation.
  const changed = messages.with(0, { role: 'user', content: 'Tell me of the moor.' }).slice(0, -1)
  t.deepEqual(await ask(changed, { session: 'talk' }), await ask(changed))
})

test('a conversation that ends its turns with a stop text or the end-of-turn token', async (t) => {
  const { ChatTemplate } = await import('node-mamba')
  const source = plainTemplate.replace(
    '{{ m.content }}',
    '{{ m.content }}{% if m.role == "assistant" %}{{ eos_token }}{% endif %}',
  )
  const template = await ChatTemplate.from(source, { eos_token: ',' })
  const { post } = await testApp(t, model(), { chatTemplates: { novels: template } })
  const ask = async (messages: object[], more: object) => {
    const { body } = await post('/v1/chat/completions', { ...common, max_tokens: 200, messages, ...more })
    return { ...body.choices[0], usage: body.usage }
  }
  const first = [{ role: 'user', content: 'Tell me of the sea.' }]
  const answer = await ask(first, { session: 'a' })
  t.is(answer.finish_reason, 'stop')
  t.false(answer.message.content.includes(','))
  const second = [
    ...first,
    { role: 'assistant', content: answer.message.content },
    { role: 'user', content: 'And?' },
  ]
  const next = await ask(second, { session: 'a' })
  // Of the end-of-turn token, too, the state is known.
  t.is(
    next.usage.prompt_tokens_details.cached_tokens,
    answer.usage.prompt_tokens + answer.usage.completion_tokens,
  )
  t.is(next.message.content, (await ask(second, {})).message.content)

  const word = (answer.message.content as string).trim().split(/\s+/)[1]!
  const cut = await ask(first, { session: 'b', stop: word })
  t.is(cut.finish_reason, 'stop')
  const cutSecond = [
    ...first,
    { role: 'assistant', content: cut.message.content },
    { role: 'user', content: 'And?' },
  ]
  const afterCut = await ask(cutSecond, { session: 'b' })
  // The state after the answer holds some of the stop text; the one before it is right.
  t.is(afterCut.usage.prompt_tokens_details.cached_tokens, cut.usage.prompt_tokens)
  t.is(afterCut.message.content, (await ask(cutSecond, {})).message.content)
})

test('the cost of a turn does not grow with the conversation', async (t) => {
  const { post } = await testApp(t, model())
  const messages: object[] = []
  const computed: number[] = []
  for (let i = 0; i < 30; i++) {
    messages.push({ role: 'user', content: 'And then?' })
    // Token 0 is the end of text, which this template does not write.
    const asked = { ...common, messages, session: 'long', logit_bias: { 0: -100 } }
    const { body } = await post('/v1/chat/completions', asked)
    computed.push(body.usage.prompt_tokens - body.usage.prompt_tokens_details.cached_tokens)
    messages.push({ role: 'assistant', content: body.choices[0].message.content })
  }
  t.deepEqual(new Set(computed.slice(1)), new Set([length('\nuser:\nAnd then?\nassistant:\n')]))
})

// Debian's redis-server.
const testRedis = spawnSync('redis-server', ['--version']).status === 0 ? test : test.skip

/** A Redis of the test's own. */
async function startRedis(t: ExecutionContext): Promise<{ port: number; process: ChildProcess }> {
  const listener = createServer().listen(0)
  await once(listener, 'listening')
  const { port } = listener.address() as AddressInfo
  listener.close()
  const redis = spawn('redis-server', ['--port', String(port), '--save', '', '--appendonly', 'no'], {
    cwd: temporaryFolder(t),
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  t.teardown(() => redis.kill())
  let said = ''
  redis.stdout.on('data', (text: Buffer) => (said += text.toString()))
  await until(() => said.includes('Ready to accept connections'))
  return { port, process: redis }
}

testRedis('in Redis, shared by servers, and without it when it is gone', async (t) => {
  const redis = await startRedis(t)
  const url = `redis://127.0.0.1:${redis.port}`
  const stores: SessionStore[] = []
  const store = () => {
    const made = new RedisSessions(url, { seconds: 2 })
    stores.push(made)
    return made
  }
  await keeps(t, store)
  // Another server goes on where the first one was.
  const { post } = await testApp(t, model(), { sessions: store() })
  t.true((await complete(post, { prompt: ' x', session: 'story' })).cached! > 0)
  // It is forgotten some time after it was used last.
  await until(async () => (await stores[0]!.get('x')) === undefined)
  await new Promise((resolve) => setTimeout(resolve, 2500))
  t.is((await complete(post, { prompt: ' x', session: 'story' })).cached, 0)

  redis.process.kill('SIGKILL')
  await once(redis.process, 'exit')
  t.deepEqual(await complete(post, { prompt: ' x', session: 'story' }), {
    status: 503,
    code: 'session_store_unavailable',
  })
  t.is((await post('/v1/completions', { ...common, prompt: 'Once' })).status, 200)
})
