// The endpoints of the server answer as OpenAI's do, with what the library computes.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { mkdirSync, writeFileSync } from 'node:fs'
import test from 'ava'
import { Hono } from 'hono'
import { ChatTemplate, Mamba, type Completion, type GeneratedToken } from 'node-mamba'
import { createApp } from 'node-mamba/server'
import { Choices, type ChoiceEvent } from '../lib/server/generation.js'
import { temporaryFolder } from './helpers/folder.js'
import { failure, useModel } from './helpers/model.js'
import { events, plainTemplate, testApp } from './helpers/server.js'

const model = useModel()
const prompt = 'It was a dark and stormy night, and the'
const request = { model: 'novels', prompt, max_tokens: 12, temperature: 0.9, seed: 5 }
const options = { maxTokens: 12, temperature: 0.9, seed: 5 }

test('a completion is what the library gives', async (t) => {
  const { post } = await testApp(t, model())
  const { status, headers, body } = await post('/v1/completions', request)
  const expected = await model().complete(prompt, options)
  t.is(status, 200)
  t.truthy(headers.get('x-request-id'))
  t.is(body.object, 'text_completion')
  t.is(body.model, 'novels')
  t.deepEqual(body.choices, [{ index: 0, text: expected.text, logprobs: null, finish_reason: 'length' }])
  t.deepEqual(body.usage, {
    prompt_tokens: expected.usage.promptTokens,
    completion_tokens: 12,
    total_tokens: expected.usage.promptTokens + 12,
    prompt_tokens_details: { cached_tokens: 0 },
  })
})

test('max_tokens is 16 unless said, and the temperature 1', async (t) => {
  const { post } = await testApp(t, model())
  const { body } = await post('/v1/completions', { model: 'novels', prompt, seed: 1 })
  t.is(
    body.choices[0].text,
    (await model().complete(prompt, { maxTokens: 16, temperature: 1, seed: 1 })).text,
  )
})

test('without a seed answers differ', async (t) => {
  const { post } = await testApp(t, model())
  const { body } = await post('/v1/completions', { ...request, seed: null, n: 4 })
  const texts = body.choices.map((choice: { text: string }) => choice.text) as string[]
  t.is(new Set(texts).size, 4)
})

test('every sampling option reaches the library', async (t) => {
  const { post } = await testApp(t, model())
  const cases: [object, object][] = [
    [{ top_p: 0.5 }, { topP: 0.5 }],
    [{ top_k: 3 }, { topK: 3 }],
    [{ min_p: 0.2 }, { minP: 0.2 }],
    [{ repetition_penalty: 1.5 }, { repetitionPenalty: 1.5 }],
    [{ frequency_penalty: 2 }, { frequencyPenalty: 2 }],
    [{ presence_penalty: -2 }, { presencePenalty: -2 }],
    [{ logit_bias: { 300: 20 } }, { logitBias: { 300: 20 } }],
    [{ stop: ' well' }, { stop: ' well' }],
    [{ stop: ['.', ' of', ','] }, { stop: ['.', ' of', ','] }],
  ]
  const common = { ...request, max_tokens: 40 }
  const plain = (await post('/v1/completions', common)).body.choices[0].text as string
  for (const [asked, given] of cases) {
    const { body } = await post('/v1/completions', { ...common, ...asked })
    const expected = await model().complete(prompt, { ...options, maxTokens: 40, ...given })
    t.is(body.choices[0].text, expected.text, JSON.stringify(asked))
    t.is(body.choices[0].finish_reason, expected.finishReason, JSON.stringify(asked))
    t.not(body.choices[0].text, plain, JSON.stringify(asked))
  }
})

test('a negative seed is a seed', async (t) => {
  const { post } = await testApp(t, model())
  const text = async (seed: number) =>
    (await post('/v1/completions', { ...request, seed })).body.choices[0].text as string
  t.is(await text(-7), await text(-7))
  t.not(await text(-7), await text(7))
})

test('several prompts, as texts and as ids, and n answers to each, in order', async (t) => {
  const { post } = await testApp(t, model())
  const prompts = ['The ship', 'My dear']
  const expected = await Promise.all(
    prompts.flatMap((prompt) => [5, 6].map((seed) => model().complete(prompt, { ...options, seed }))),
  )
  const ids = prompts.map((prompt) => [...model().tokenizer.encode(prompt)])
  for (const prompt of [prompts, ids]) {
    const { body } = await post('/v1/completions', { ...request, prompt, n: 2 })
    t.deepEqual(
      body.choices.map(({ index, text }: { index: number; text: string }) => [index, text]),
      expected.map(({ text }, index) => [index, text]),
    )
    // A prompt is counted once, whatever n is.
    t.is(body.usage.prompt_tokens, ids[0]!.length + ids[1]!.length)
    t.is(body.usage.completion_tokens, 48)
  }
  const one = await post('/v1/completions', { ...request, prompt: ids[0] })
  t.is(one.body.choices[0].text, expected[0]!.text)
})

test('a stream says what the whole answer says', async (t) => {
  const { post } = await testApp(t, model())
  for (const more of [
    {},
    { n: 2, prompt: ['The ship', 'My'] },
    { stop: ' the' },
    { logprobs: 2 },
    { echo: true },
  ]) {
    const asked = { ...request, max_tokens: 30, ...more }
    const { body: whole } = await post('/v1/completions', asked)
    const { headers, body } = await post('/v1/completions', {
      ...asked,
      stream: true,
      stream_options: { include_usage: true },
    })
    t.is(headers.get('content-type'), 'text/event-stream; charset=utf-8')
    const parts = events(body)
    t.is(parts.pop(), '[DONE]')
    const last = parts.pop()
    t.deepEqual([last.choices, last.usage], [[], whole.usage])
    for (const choice of whole.choices) {
      const own = parts.map(({ choices }) => choices[0]).filter(({ index }) => index === choice.index)
      t.is(own.map(({ text }) => text).join(''), choice.text)
      t.deepEqual(
        own.map(({ finish_reason }) => finish_reason).filter((reason) => reason !== null),
        [choice.finish_reason],
      )
      if ('logprobs' in more) {
        for (const field of ['tokens', 'token_logprobs', 'top_logprobs', 'text_offset'])
          t.deepEqual(
            own.flatMap(({ logprobs }) => logprobs[field]),
            choice.logprobs[field],
          )
      }
    }
  }
  const { body } = await post('/v1/completions', { ...request, stream: true })
  t.false(body.includes('usage'))
})

test('log-probabilities of an answer, and of its prompt with echo', async (t) => {
  const { post } = await testApp(t, model())
  const { body } = await post('/v1/completions', { ...request, echo: true, logprobs: 3, max_tokens: 4 })
  const [{ text, logprobs }] = body.choices
  const ids = model().tokenizer.encode(prompt)
  const score = await model().score(ids)
  const expected = await model().complete(prompt, { ...options, maxTokens: 4, logprobs: 3 })
  t.is(text, prompt + expected.text)
  t.is(logprobs.tokens.join(''), text)
  t.deepEqual(logprobs.token_logprobs, [null, ...score.logprobs, ...expected.logprobs])
  logprobs.text_offset.forEach((offset: number, i: number) =>
    t.true(text.slice(offset).startsWith(logprobs.tokens[i])),
  )
  const [first] = expected.top!
  const names = first!.map(({ token, logprob }) => [model().tokenizer.decode([token]), logprob])
  for (const [name, logprob] of names) t.is(logprobs.top_logprobs[ids.length][name as string], logprob)
})

test('echo without new tokens scores a text', async (t) => {
  const { post } = await testApp(t, model())
  const { body } = await post('/v1/completions', {
    model: 'novels',
    prompt,
    echo: true,
    logprobs: 0,
    max_tokens: 0,
  })
  t.is(body.choices[0].text, prompt)
  t.deepEqual(body.choices[0].logprobs.token_logprobs, [null, ...(await model().score(prompt)).logprobs])
  t.is(body.usage.completion_tokens, 0)
  t.is(body.usage.prompt_tokens, model().tokenizer.encode(prompt).length)
})

test('log-probabilities end where the text does', async (t) => {
  const { post } = await testApp(t, model())
  const { body: long } = await post('/v1/completions', { ...request, max_tokens: 30 })
  const words = (long.choices[0].text as string).split(' ')
  const stop = ` ${words[5]} ${words[6]}`
  const { body } = await post('/v1/completions', { ...request, max_tokens: 30, logprobs: 0, stop })
  const [{ text, logprobs, finish_reason }] = body.choices
  t.is(finish_reason, 'stop')
  t.false(text.includes(stop))
  t.is(logprobs.tokens.join(''), text)
})

test('a token that is part of a character has a name of its own', async (t) => {
  const { post } = await testApp(t, model())
  const id = [...model().tokenizer.encode('\u6f22')].find((id) =>
    model().tokenizer.decode([id]).includes('\ufffd'),
  )!
  const asked = {
    messages: [{ role: 'user', content: 'x' }],
    logprobs: true,
    logit_bias: { [id]: 100 },
    max_tokens: 2,
  }
  const { body } = await post('/v1/chat/completions', { model: 'novels', ...asked })
  t.deepEqual(
    body.choices[0].logprobs.content.map(({ token, bytes }: { token: string; bytes: null }) => [
      token,
      bytes,
    ]),
    [
      [`token_id:${id}`, null],
      [`token_id:${id}`, null],
    ],
  )
})

const messages = [
  { role: 'system', content: 'You tell stories.' },
  {
    role: 'user',
    content: [
      { type: 'text', text: 'Tell ' },
      { type: 'text', text: 'one.' },
    ],
  },
]
const rendered = 'system:\nYou tell stories.\nuser:\nTell one.\nassistant:\n'

test('a chat is a completion of what the template makes of it', async (t) => {
  const { post } = await testApp(t, model())
  const asked = { model: 'novels', messages, max_completion_tokens: 12, temperature: 0.9, seed: 5 }
  const expected = await model().complete(rendered, { ...options, logprobs: 2 })
  const { body } = await post('/v1/chat/completions', { ...asked, logprobs: true, top_logprobs: 2 })
  t.is(body.object, 'chat.completion')
  const [choice] = body.choices
  t.deepEqual(choice.message, { role: 'assistant', content: expected.text, refusal: null })
  t.is(choice.finish_reason, 'length')
  const { content } = choice.logprobs
  t.is(content.map(({ token }: { token: string }) => token).join(''), expected.text)
  t.deepEqual(
    content.map(({ logprob }: { logprob: number }) => logprob),
    [...expected.logprobs],
  )
  t.is(Buffer.from(content.flatMap(({ bytes }: { bytes: number[] }) => bytes)).toString(), expected.text)
  t.deepEqual(
    content[0].top_logprobs.map(({ logprob }: { logprob: number }) => logprob),
    expected.top![0]!.map(({ logprob }) => logprob),
  )

  const streamed = events((await post('/v1/chat/completions', { ...asked, stream: true, n: 2 })).body)
  t.is(streamed.pop(), '[DONE]')
  const first = streamed.map(({ choices }) => choices[0]).filter(({ index }) => index === 0)
  t.deepEqual(first[0].delta, { role: 'assistant', content: '' })
  t.is(first.map(({ delta }) => delta.content ?? '').join(''), expected.text)
  t.is(first.at(-1).finish_reason, 'length')
  t.true(streamed.every(({ object }) => object === 'chat.completion.chunk'))
})

test("a checkpoint's own template, and the token that ends its turns", async (t) => {
  const folder = join(temporaryFolder(t), 'model')
  mkdirSync(folder)
  const source = new URL('../models/mamba-novels-7m/', import.meta.url)
  for (const name of ['config.json', 'model.safetensors', 'tokenizer.json'])
    writeFileSync(join(folder, name), readFileSync(new URL(name, source)))
  const chat_template = [
    { name: 'tool_use', template: 'unused' },
    { name: 'default', template: `{{ bos_token }}${plainTemplate}` },
  ]
  const eos_token = { content: ' the', special: true }
  writeFileSync(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify({ chat_template, bos_token: '<|endoftext|>', eos_token }),
  )
  const own = await Mamba.load(folder, { dtype: 'f32' })
  t.teardown(() => own.dispose())
  const { post } = await testApp(t, own, { models: { own }, chatTemplates: {} })
  const { body } = await post('/v1/chat/completions', {
    model: 'own',
    messages,
    max_tokens: 60,
    temperature: 0,
  })
  const [the] = own.tokenizer.encode(' the')
  const expected = await own.complete(`<|endoftext|>${rendered}`, { maxTokens: 60, stopTokens: [the!] })
  t.is(expected.finishReason, 'stop')
  t.is(body.choices[0].message.content, expected.text)
  t.is(body.choices[0].finish_reason, 'stop')

  // The library's own way is the same.
  const text = messages.map(({ content }) =>
    typeof content === 'string' ? content : content.map((part) => part.text).join(''),
  )
  const chat = messages.map(({ role }, i) => ({ role, content: text[i]! }))
  t.is((await (await own.chat(chat, { maxTokens: 60 })).result).text, expected.text)
  await t.throwsAsync(model().chat(chat), failure('CHAT_TEMPLATE_MISSING'))

  // A file of its own comes first.
  writeFileSync(join(folder, 'chat_template.jinja'), 'from the file')
  t.is(await (await ChatTemplate.read(folder))!.render([]), 'from the file')
})

test('embeddings are the library’s, as numbers and in base64', async (t) => {
  const { post } = await testApp(t, model())
  const input = ['a ship at sea', 'a boat on the water']
  const expected = await model().embed(input)
  const ids = input.map((text) => [...model().tokenizer.encode(text)])
  for (const form of [input, ids]) {
    const { body } = await post('/v1/embeddings', { model: 'novels', input: form })
    t.is(body.object, 'list')
    t.deepEqual(
      body.data.map(({ index, embedding }: { index: number; embedding: number[] }) => [index, embedding]),
      expected.map((vector, index) => [index, [...vector]]),
    )
    t.deepEqual(body.usage, { prompt_tokens: ids.flat().length, total_tokens: ids.flat().length })
  }
  const { body } = await post('/v1/embeddings', {
    model: 'novels',
    input: input[0],
    encoding_format: 'base64',
    dimensions: 8,
  })
  const bytes = Buffer.from(body.data[0].embedding, 'base64')
  t.deepEqual(
    Array.from({ length: 8 }, (_, i) => bytes.readFloatLE(4 * i)),
    [...(await model().embed(input[0]!, { dimensions: 8 }))],
  )
  t.is(bytes.length, 32)
})

test('models are listed and described', async (t) => {
  const { send } = await testApp(t, model(), { models: { 'owner/novels': model(), other: model() } })
  const { body } = await send('/v1/models')
  t.deepEqual(
    body.data.map(({ id, object }: { id: string; object: string }) => [id, object]),
    [
      ['owner/novels', 'model'],
      ['other', 'model'],
    ],
  )
  t.deepEqual((await send('/v1/models/owner/novels')).body, body.data[0])
})

test('health, readiness and metrics', async (t) => {
  const { send, post } = await testApp(t, model())
  t.deepEqual((await send('/health')).body, { status: 'ok' })
  t.deepEqual((await send('/ready')).body, { status: 'ready' })
  await post('/v1/completions', { ...request, max_tokens: 3 })
  await post('/v1/completions', { ...request, max_tokens: 3, stream: true })
  await post('/v1/completions', { ...request, model: 'none' })
  const { headers, body } = await send('/metrics')
  t.regex(headers.get('content-type')!, /^text\/plain; version=0\.0\.4/)
  const value = (line: string) =>
    Number(
      body
        .split('\n')
        .find((found: string) => found.startsWith(line))
        ?.split(' ')[1],
    )
  t.is(value('node_mamba_requests_total{route="/v1/completions",status="200"}'), 2)
  t.is(value('node_mamba_requests_total{route="/v1/completions",status="404"}'), 1)
  t.is(value('node_mamba_request_seconds_count{route="/v1/completions"}'), 3)
  t.is(value('node_mamba_tokens_total{model="novels",kind="completion"}'), 6)
  t.is(
    value('node_mamba_tokens_total{model="novels",kind="prompt"}'),
    2 * model().tokenizer.encode(prompt).length,
  )
  t.is(value('node_mamba_first_token_seconds_count{model="novels"}'), 1)
  t.is(value('node_mamba_active_requests'), 0)
})

test('mounted in another app', async (t) => {
  const { app, close } = await createApp({ models: model() })
  t.teardown(() => close(0))
  const yours = new Hono().get('/', (c) => c.text('yours')).route('/ai', app)
  t.is(await (await yours.request('/')).text(), 'yours')
  const models = (await (await yours.request('/ai/v1/models')).json()) as { data: { id: string }[] }
  t.deepEqual(
    models.data.map(({ id }) => id),
    ['default'],
  )
})

test('a folder is served at /, and nothing outside of it', async (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'page'))
  writeFileSync(join(folder, 'page/index.html'), '<p>playground')
  writeFileSync(join(folder, 'secret'), 'secret')
  const { send } = await testApp(t, model(), { playground: join(folder, 'page') })
  const { headers, body } = await send('/')
  t.is(body, '<p>playground')
  t.regex(headers.get('content-security-policy')!, /default-src 'self'/)
  for (const path of [
    '/../secret',
    '/%2e%2e/secret',
    '/..%2fsecret',
    '/%2e%2e%2fsecret',
    '/..\\secret',
    '/page/../../secret',
  ]) {
    const { status, body } = await send(path)
    t.is(status, 404, path)
    t.is(body.error.code, 'unknown_url', path)
  }
})

test('tokens that come faster than parts of a stream are written come together; the end does not wait', async (t) => {
  const completion = { finishReason: 'length' } as Completion
  const waiting: GeneratedToken[] = []
  let told = () => {}
  const come = async () => {
    for (let token = 0; token < 100; token++) {
      waiting.push({ token, text: 'x', logprob: 0 })
      told()
      await new Promise((resolve) => setImmediate(resolve))
    }
    return completion
  }
  const watch = (changed: () => void) => (told = changed)
  const choices = new Choices([{ watch, take: () => waiting.splice(0), result: come() }], () => 40)
  const parts: ChoiceEvent[][] = []
  for (let part = await choices.next(); part.length > 0; part = await choices.next()) parts.push(part)
  t.deepEqual(
    parts
      .flat()
      .flatMap((event): (number | Completion)[] =>
        'tokens' in event ? event.tokens.map(({ token }) => token) : [event.completion],
      ),
    [...Array(100).keys(), completion],
  )
  t.deepEqual(parts[0], [{ index: 0, tokens: [{ token: 0, text: 'x', logprob: 0 }] }])
  t.true(parts.length < 50, `${parts.length} parts`)
})

test('callers with keys of their own are served in turn', async (t) => {
  const model = await Mamba.load('default', { maxBatch: 1 })
  t.teardown(() => model.dispose())
  const { post } = await testApp(t, model, { apiKeys: ['many', 'one'] })
  const order: string[] = []
  const ask = async (key: string) => {
    const body = { model: 'novels', prompt: 'The ship', max_tokens: 20 }
    t.is((await post('/v1/completions', body, { authorization: `Bearer ${key}` })).status, 200)
    order.push(key)
  }
  const all = Array.from({ length: 12 }, () => ask('many'))
  all.push(ask('one'))
  await Promise.all(all)
  t.true(order.indexOf('one') < 6, order.join())
})
