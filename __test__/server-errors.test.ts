// Whatever is sent: OpenAI's error JSON with the right status, and the server goes on.
import crypto from 'node:crypto'
import { readFileSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import test from 'ava'
import { ChatTemplate, Mamba } from 'node-mamba'
import { createApp } from 'node-mamba/server'
import { runChild } from './helpers/child.js'
import { randomTensors, tiny, writeConfig, writeSafetensors } from './helpers/checkpoint.js'
import { temporaryFolder } from './helpers/folder.js'
import { failure, useModel } from './helpers/model.js'
import { testApp, testServer, until, type Answer } from './helpers/server.js'

const model = useModel()
const completion = { model: 'novels', prompt: 'The ship', max_tokens: 2 }
const chat = { model: 'novels', messages: [{ role: 'user', content: 'hello' }], max_tokens: 2 }

/** Is this the error that is expected, in OpenAI's form? */
function isError(
  t: {
    deepEqual: (a: unknown, b: unknown, message?: string) => boolean
    regex: (a: string, b: RegExp) => boolean
  },
  { status, headers, body }: Answer,
  expected: [status: number, code: string, param?: string | null],
  message?: RegExp,
) {
  const [expectedStatus, code, param = null] = expected
  t.deepEqual(
    [
      status,
      body.error?.code,
      body.error?.param,
      Object.keys(body.error ?? {})
        .toSorted()
        .join(),
    ],
    [expectedStatus, code, param, 'code,message,param,type'],
    JSON.stringify(body),
  )
  t.regex(headers.get('content-type')!, /^application\/json/)
  if (message) t.regex(body.error.message, message)
}

test('a body that is no JSON, or not as expected', async (t) => {
  const { post, send } = await testApp(t, model())
  const bodies: [unknown, [number, string, string?]][] = [
    ['', [400, 'invalid_json']],
    ['{', [400, 'invalid_json']],
    ['[]', [400, 'invalid_value']],
    ['null', [400, 'invalid_value']],
    [new Uint8Array([0x22, 0xff, 0x22]), [400, 'invalid_utf8']],
    [new Uint8Array([0x22, 0xed, 0xa0, 0x80, 0x22]), [400, 'invalid_utf8']],
    ['['.repeat(33), [400, 'json_too_deep']],
    ['['.repeat(1_000_000), [400, 'json_too_deep']],
    ['{"a":'.repeat(500_000), [400, 'json_too_deep']],
    [{}, [400, 'missing_required_parameter', 'model']],
    [{ model: 'novels' }, [400, 'invalid_value', 'prompt']],
    [{ ...completion, model: 7 }, [400, 'invalid_value', 'model']],
    [{ ...completion, prompt: { text: 'x' } }, [400, 'invalid_value', 'prompt']],
    [{ ...completion, prompt: [] }, [400, 'invalid_value', 'prompt']],
    [{ ...completion, prompt: ['a', 1] }, [400, 'invalid_value', 'prompt']],
    [{ ...completion, max_tokens: 1.5 }, [400, 'invalid_value', 'max_tokens']],
    [{ ...completion, max_tokens: -1 }, [400, 'invalid_value', 'max_tokens']],
    [{ ...completion, max_tokens: 0 }, [400, 'invalid_value', 'max_tokens']],
    [{ ...completion, max_tokens: 4097 }, [400, 'max_tokens_too_large', 'max_tokens']],
    [{ ...completion, temperature: 'hot' }, [400, 'invalid_value', 'temperature']],
    [{ ...completion, temperature: 3 }, [400, 'invalid_value', 'temperature']],
    [{ ...completion, top_p: 2 }, [400, 'invalid_value', 'top_p']],
    [{ ...completion, n: 0 }, [400, 'invalid_value', 'n']],
    [{ ...completion, n: 128, prompt: ['a', 'b'] }, [400, 'too_many_choices', 'n']],
    [{ ...completion, stop: [''] }, [400, 'invalid_value', 'stop.0']],
    [{ ...completion, seed: 1.5 }, [400, 'invalid_value', 'seed']],
    [{ ...completion, logit_bias: { x: 1 } }, [400, 'invalid_value', 'logit_bias.x']],
    [{ ...completion, logit_bias: { 9000: 1 } }, [400, 'option_invalid']],
    [{ ...completion, prompt: [9000] }, [400, 'token_out_of_range']],
    [{ ...completion, prompt: '' }, [400, 'empty_prompt']],
    [{ ...completion, max_token: 3 }, [400, 'unknown_parameter', 'max_token']],
    [{ ...completion, stream_options: { usage: true } }, [400, 'unknown_parameter', 'stream_options.usage']],
    [{ ...completion, suffix: 'x' }, [400, 'invalid_value', 'suffix']],
    [{ ...completion, best_of: 3 }, [400, 'invalid_value', 'best_of']],
    [{ ...completion, session: '../../etc/passwd' }, [400, 'invalid_value', 'session']],
    [{ ...completion, session: 'a', n: 2 }, [400, 'invalid_value', 'session']],
    [{ ...completion, model: '../../etc/passwd' }, [404, 'model_not_found', 'model']],
    [{ ...completion, model: '__proto__' }, [404, 'model_not_found', 'model']],
    ['{"model":"novels","prompt":"a","__proto__":{"echo":true}}', [400, 'unknown_parameter', '__proto__']],
  ]
  for (const [body, expected] of bodies) isError(t, await post('/v1/completions', body), expected)
  const plain = { method: 'POST', body: JSON.stringify(completion) }
  isError(t, await send('/v1/completions', plain), [415, 'unsupported_media_type'])
  isError(t, await send('/v1/completions', { ...plain, headers: { 'content-type': 'text/plain' } }), [
    415,
    'unsupported_media_type',
  ])
  t.is((await post('/v1/completions', completion)).status, 200)
})

test('a chat or texts that are not as expected', async (t) => {
  const { post } = await testApp(t, model(), { models: { novels: model(), bare: model() } })
  const chats: [object, [number, string, string?]][] = [
    [{ messages: [] }, [400, 'invalid_value', 'messages']],
    [{ messages: [{ role: 'tool', content: 'x' }] }, [400, 'invalid_value', 'messages.0.role']],
    [{ messages: [{ role: 'user' }] }, [400, 'invalid_value', 'messages.0.content']],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }] },
      [400, 'invalid_value', 'messages.0.content'],
    ],
    [{ tools: [{}] }, [400, 'invalid_value', 'tools']],
    [{ response_format: { type: 'json_object' } }, [400, 'invalid_value', 'response_format.type']],
    [{ max_completion_tokens: 5000 }, [400, 'max_tokens_too_large', 'max_completion_tokens']],
    [{ session: 'a', n: 2 }, [400, 'invalid_value', 'session']],
    [{ model: 'bare' }, [400, 'chat_template_missing', 'model']],
    [{ model: 'none' }, [404, 'model_not_found', 'model']],
  ]
  for (const [change, expected] of chats)
    isError(t, await post('/v1/chat/completions', { ...chat, ...change }), expected)
  const texts: [object, [number, string, string?]][] = [
    [{}, [400, 'invalid_value', 'input']],
    [{ input: '' }, [400, 'invalid_value', 'input']],
    [{ input: ['a', ''] }, [400, 'invalid_value', 'input.1']],
    [{ input: [[]] }, [400, 'invalid_value', 'input.0']],
    [{ input: [9000] }, [400, 'token_out_of_range']],
    [{ input: 'a', dimensions: 0 }, [400, 'invalid_value', 'dimensions']],
    [{ input: 'a', dimensions: 257 }, [400, 'option_invalid']],
    [{ input: 'a', encoding_format: 'hex' }, [400, 'invalid_value', 'encoding_format']],
    [{ input: Array(2049).fill('a') }, [400, 'too_many_texts', 'input']],
    [{ input: 'a', model: 'none' }, [404, 'model_not_found', 'model']],
  ]
  for (const [change, expected] of texts)
    isError(t, await post('/v1/embeddings', { model: 'novels', ...change }), expected)
})

test('an oversized body, with its length and without', async (t) => {
  const { post, app } = await testApp(t, model(), { limits: { bodyBytes: 1000 } })
  const large = { ...completion, prompt: 'x'.repeat(1000) }
  isError(t, await post('/v1/completions', large), [413, 'body_too_large'], /at most 1000 bytes/)
  const chunks = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode(' '.repeat(400))),
  })
  const request = new Request('http://localhost/v1/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: chunks,
    duplex: 'half',
  } as RequestInit)
  t.is((await app.request(request)).status, 413)
})

test('a prompt over the limit', async (t) => {
  const limits = { promptTokens: 100, completionTokens: 5 }
  const { post } = await testApp(t, model(), { limits })
  const words = (count: number) => 'ship '.repeat(count).trim()
  const tokens = model().tokenizer.encode(words(100)).length
  t.is(tokens, 100)
  t.is((await post('/v1/completions', { ...completion, prompt: words(100) })).status, 200)
  const expected = [400, 'context_length_exceeded', 'prompt'] as [number, string, string]
  isError(t, await post('/v1/completions', { ...completion, prompt: words(101) }), expected, /at most 100/)
  isError(t, await post('/v1/completions', { ...completion, prompt: [words(60), words(60)] }), expected)
  isError(t, await post('/v1/completions', { ...completion, prompt: Array(101).fill(5) }), expected)
  isError(t, await post('/v1/completions', { ...completion, prompt: words(100_000) }), expected)
  const said = [{ role: 'user', content: words(101) }]
  isError(t, await post('/v1/chat/completions', { ...chat, messages: said }), [400, expected[1], 'messages'])
  isError(t, await post('/v1/embeddings', { model: 'novels', input: [words(50), words(51)] }), [
    400,
    expected[1],
    'input',
  ])
  isError(t, await post('/v1/completions', { ...completion, max_tokens: 6 }), [
    400,
    'max_tokens_too_large',
    'max_tokens',
  ])
})

test('wrong keys', async (t) => {
  const { post, send } = await testApp(t, model(), { apiKeys: ['first-key', 'second-key'] })
  const bearing = (key: string) => ({ authorization: `Bearer ${key}` })
  for (const key of ['first-key', 'second-key'])
    t.is((await post('/v1/completions', completion, bearing(key))).status, 200)
  const wrong = [
    {},
    { authorization: '' },
    { authorization: 'Bearer' },
    { authorization: 'Bearer ' },
    { authorization: 'Basic first-key' },
    bearing('first-ke'),
    bearing('first-keyy'),
    bearing('First-key'),
    bearing('first-key second-key'),
    bearing('x'.repeat(8000)),
  ]
  const answers: string[] = []
  for (const headers of wrong) {
    const answer = await post('/v1/completions', completion, headers as Record<string, string>)
    isError(t, answer, [401, 'invalid_api_key'])
    t.is(answer.headers.get('www-authenticate'), 'Bearer')
    answers.push(JSON.stringify(answer.body))
  }
  t.is(new Set(answers).size, 1) // nothing in it says how near the key was
  for (const path of ['/v1/models', '/v1/models/novels', '/metrics'])
    isError(t, await send(path), [401, 'invalid_api_key'])
  // The key is asked for before anything is read.
  isError(t, await post('/v1/chat/completions', '{'), [401, 'invalid_api_key'])
  isError(t, await send('/v1/sessions/a', { method: 'DELETE' }), [401, 'invalid_api_key'])
  for (const path of ['/health', '/ready', '/openapi.json']) t.is((await send(path)).status, 200)
})

test.serial(
  'near or far, a key takes the same work: one comparison in constant time with each known key',
  async (t) => {
    const { post } = await testApp(t, model(), { apiKeys: ['first-key', 'second-key', 'third-key'] })
    const { timingSafeEqual } = crypto
    const compared: number[] = []
    crypto.timingSafeEqual = (a, b) => {
      compared.push(a.byteLength, b.byteLength)
      return timingSafeEqual(a, b)
    }
    syncBuiltinESMExports()
    t.teardown(() => {
      crypto.timingSafeEqual = timingSafeEqual
      syncBuiltinESMExports()
    })
    for (const [key, status] of [
      ['first-key', 400],
      ['third-key', 400],
      ['first-kez', 401],
      ['zirst-key', 401],
      ['first-ke', 401],
      ['x'.repeat(8000), 401],
      [undefined, 401],
    ] as const) {
      const headers = key === undefined ? {} : { authorization: `Bearer ${key}` }
      t.is((await post('/v1/completions', '{', headers as Record<string, string>)).status, status)
      // Of digests, so the key's length does not show either.
      t.deepEqual(compared.splice(0), Array(6).fill(32), key?.slice(0, 20))
    }
  },
)

test('a method that a path does not have, and a path that is not there', async (t) => {
  const { send, post } = await testApp(t, model())
  for (const [path, method, allow] of [
    ['/v1/completions', 'GET', 'POST'],
    ['/v1/chat/completions', 'PUT', 'POST'],
    ['/v1/models', 'DELETE', 'GET, HEAD'],
    ['/v1/sessions/a', 'PATCH', 'DELETE'],
    ['/health', 'POST', 'GET, HEAD'],
  ] as const) {
    const answer = await send(path, { method })
    isError(t, answer, [405, 'method_not_allowed'])
    t.is(answer.headers.get('allow'), allow)
  }
  isError(t, await post('/v1/responses', {}), [404, 'unknown_url'])
  isError(t, await send('/v1/models/../../etc/passwd'), [404, 'unknown_url'])
  isError(t, await send('/v1/models/..%2f..%2fetc%2fpasswd'), [404, 'model_not_found', 'model'])
  isError(t, await send('/v1/sessions/..%2f..%2fetc%2fpasswd', { method: 'DELETE' }), [
    400,
    'invalid_value',
    'session',
  ])
  isError(t, await send('/v1/sessions/none', { method: 'DELETE' }), [404, 'session_not_found', 'session'])
})

test('a full queue', async (t) => {
  const small = await Mamba.load('default', { maxBatch: 1, queueLimit: 1 })
  t.teardown(() => small.dispose())
  const { post } = await testApp(t, small)
  const long = { ...completion, max_tokens: 400, logit_bias: { 0: -100 } }
  const answers = await Promise.all(Array.from({ length: 4 }, () => post('/v1/completions', long)))
  const refused = answers.filter(({ status }) => status !== 200)
  t.is(refused.length, 3)
  for (const answer of refused) {
    isError(t, answer, [429, 'queue_full'])
    t.is(answer.headers.get('retry-after'), '1')
  }
  // One of n: none of them goes on.
  isError(t, await post('/v1/completions', { ...long, n: 2 }), [429, 'queue_full'])
  isError(t, await post('/v1/completions', { ...long, n: 2, stream: true }), [429, 'queue_full'])
  await until(async () => (await post('/v1/completions', completion)).status === 200)
})

test('a request that takes too long', async (t) => {
  const { post } = await testApp(t, model(), { limits: { requestSeconds: 0.05 } })
  const long = { ...completion, max_tokens: 4096, logit_bias: { 0: -100 } }
  isError(t, await post('/v1/completions', long), [504, 'timeout'], /after 0\.05 s/)
  const { status, body } = await post('/v1/completions', { ...long, stream: true })
  t.is(status, 200)
  const last = (body as string).trim().split('\n\n').at(-1)!
  t.is(JSON.parse(last.slice('data: '.length)).error.code, 'timeout')
})

test('a disposed model', async (t) => {
  const gone = await Mamba.load('default')
  const { post } = await testApp(t, gone)
  await gone.dispose()
  isError(t, await post('/v1/completions', completion), [503, 'model_disposed'])
})

test('a model without a tokenizer takes ids only', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  writeSafetensors(`${folder}/model.safetensors`, randomTensors(tiny))
  const bare = await Mamba.load(folder)
  t.teardown(() => bare.dispose())
  const { post } = await testApp(t, bare)
  isError(t, await post('/v1/completions', completion), [400, 'tokenizer_missing'])
  isError(t, await post('/v1/embeddings', { model: 'novels', input: 'a' }), [400, 'tokenizer_missing'])
  t.is((await post('/v1/embeddings', { model: 'novels', input: [1, 2] })).status, 200)
})

test('chat templates that loop, fill the memory, or refuse', async (t) => {
  const said = (source: string) => `{% for m in messages %}${source}{% endfor %}`
  const templates: [source: string, status: number, code: string, message: RegExp][] = [
    [said('{% for i in range(1000000000) %}{% endfor %}'), 500, 'chat_template_timeout', /within 2 s/],
    [
      said("{{ raise_exception('roles must alternate') }}"),
      400,
      'chat_template_failed',
      /roles must alternate/,
    ],
    [said('{{ nothing() }}'), 400, 'chat_template_failed', /refused/],
  ]
  for (const [source, status, code, message] of templates) {
    const template = await ChatTemplate.from(source)
    const { post } = await testApp(t, model(), { chatTemplates: { novels: template } })
    isError(t, await post('/v1/chat/completions', chat), [status, code], message)
    t.is((await post('/v1/completions', completion)).status, 200)
  }
  // What the library itself says of it.
  const quadratic = '{% for i in range(20000) %}{% for j in range(20000) %}{% endfor %}{% endfor %}'
  const slow = await ChatTemplate.from(quadratic)
  await t.throwsAsync(
    slow.render([]),
    failure('CHAT_TEMPLATE_TIMEOUT', /goes on and on, expected to end within 2 s/),
  )
  const large = await ChatTemplate.from('{% for i in range(1000000000) %}{% endfor %}')
  await t.throwsAsync(large.render([]), failure('CHAT_TEMPLATE_TIMEOUT', /within 2 s and 128 MiB/))
  const doubling =
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
  await t.throwsAsync((await ChatTemplate.from(doubling)).render([]), failure('CHAT_TEMPLATE_FAILED'))
  await t.throwsAsync(ChatTemplate.from('{% for %}'), failure('CHAT_TEMPLATE_INVALID', /not valid Jinja/))
  await t.throwsAsync(ChatTemplate.from(5 as never), failure('CHAT_TEMPLATE_INVALID', /is 5/))
  // It can be used again.
  const healed = await ChatTemplate.from(
    '{% if messages %}{% for i in range(1000000000) %}{% endfor %}{% endif %}ok',
  )
  await t.throwsAsync(healed.render([{ role: 'user', content: '' }]), failure('CHAT_TEMPLATE_TIMEOUT'))
  t.is(await healed.render([]), 'ok')
  await healed.close()
})

const testLinux = process.platform === 'linux' ? test : test.skip

testLinux('a template that loops ends soon after whoever asked was killed', async (t) => {
  const { signal, stdout } = await runChild(`
    import { readFileSync, writeSync } from 'node:fs'
    import { ChatTemplate } from './dist/index.js'
    const quadratic = '{% for i in range(20000) %}{% for j in range(20000) %}{% endfor %}{% endfor %}'
    const template = await ChatTemplate.from(quadratic)
    template.render([]).catch(() => {})
    const [child] = readFileSync(\`/proc/self/task/\${process.pid}/children\`, 'utf8').match(/\\d+/)
    const ticks = () => Number(readFileSync(\`/proc/\${child}/stat\`, 'utf8').split(' ')[13])
    const before = ticks()
    while (ticks() < before + 20) await new Promise((resolve) => setTimeout(resolve, 10))
    writeSync(1, child)
    process.kill(process.pid, 'SIGKILL')
  `)
  t.is(signal, 'SIGKILL')
  t.regex(stdout, /^\d+$/)
  await until(() => {
    try {
      return readFileSync(`/proc/${stdout}/stat`, 'utf8').split(' ')[2] === 'Z'
    } catch {
      return true // there is no such process
    }
  })
  t.pass()
})

test('other hosts and other origins are let in only where it was asked for', async (t) => {
  const { port } = await testServer(t, model())
  const { request } = await import('node:http')
  const ask = (headers: Record<string, string>) =>
    new Promise<{ status: number; headers: NodeJS.Dict<string | string[]> }>((resolve, reject) => {
      request({ port, host: '127.0.0.1', path: '/health', headers }, (answer) => {
        answer.resume()
        resolve({ status: answer.statusCode!, headers: answer.headers })
      })
        .on('error', reject)
        .end()
    })
  for (const host of [`localhost:${port}`, `LocalHost:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`])
    t.is((await ask({ host })).status, 200)
  for (const host of ['evil.example', `evil.example:${port}`, 'localhost.evil.example'])
    t.is((await ask({ host })).status, 403)
  const origin = 'https://page.example'
  t.is((await ask({ origin })).headers['access-control-allow-origin'], undefined)

  const { send } = await testApp(t, model(), { corsOrigins: [origin] })
  const allowed = async (from: string) =>
    (await send('/health', { headers: { origin: from } })).headers.get('access-control-allow-origin')
  t.is(await allowed(origin), origin)
  t.is(await allowed('https://other.example'), null)
  const preflight = await send('/v1/completions', {
    method: 'OPTIONS',
    headers: { origin, 'access-control-request-method': 'POST' },
  })
  t.is(preflight.status, 204)
})

test('options that make no sense', async (t) => {
  const models = { novels: model() }
  const cases: [object, Parameters<typeof failure>][] = [
    [{ models: {} }, ['INVALID_ARGUMENT', /models/]],
    [{ models: { '../x': model() } }, ['OPTION_INVALID', /`models` is '\.\.\/x'/]],
    [{ models: { x: {} } }, ['OPTION_INVALID', /models\.x/]],
    [{ models, apiKey: 'x' }, ['OPTION_INVALID', /did you mean `apiKeys`/]],
    [{ models, apiKeys: 'x' }, ['OPTION_INVALID', /`apiKeys` is 'x'/]],
    [{ models, apiKeys: [''] }, ['OPTION_INVALID', /apiKeys/]],
    [{ models, limits: { bodyByte: 1 } }, ['OPTION_INVALID', /did you mean `bodyBytes`/]],
    [{ models, limits: { bodyBytes: 0 } }, ['OPTION_INVALID', /bodyBytes/]],
    [{ models, limits: { requestSeconds: Number.NaN } }, ['OPTION_INVALID', /requestSeconds/]],
    [
      { models, limits: { stallSeconds: 1e7 } },
      ['OPTION_INVALID', /stallSeconds` is 10000000, .* at most 1000000/],
    ],
    [{ models, sessions: './sessions' }, ['OPTION_INVALID', /`sessions` is '\.\/sessions'/]],
    [{ models, chatTemplates: { novels: '{{ x }}' } }, ['OPTION_INVALID', /chatTemplates\.novels/]],
    [{ models, chatTemplates: { other: {} } }, ['OPTION_INVALID', /'other', expected the name of a model/]],
  ]
  for (const [options, expected] of cases)
    await t.throwsAsync(createApp(options as Parameters<typeof createApp>[0]), failure(...expected))
  const { port } = await testServer(t, model())
  const { serve } = await import('node-mamba/server')
  await t.throwsAsync(serve({ models, port }), failure('IO_ERROR', /cannot listen on 127\.0\.0\.1 port/))
  await t.throwsAsync(serve({ models, port: 70_000 }), failure('OPTION_INVALID', /port/))
  for (const drainSeconds of [-1, Number.NaN, 1e7])
    await t.throwsAsync(serve({ models, port: 0, drainSeconds }), failure('OPTION_INVALID', /drainSeconds/))
  const { close } = await createApp({ models })
  await t.throwsAsync(close(-1), failure('OPTION_INVALID', /drainSeconds/))
  await close()
})

test('an id outside the vocabulary is refused, also where nothing is generated', async (t) => {
  const { post } = await testApp(t, model())
  const asked = { model: 'novels', prompt: [1_000_000], echo: true, max_tokens: 0 }
  for (const logprobs of [undefined, 0])
    isError(t, await post('/v1/completions', { ...asked, logprobs }), [400, 'token_out_of_range'])
})
