// `node-mamba serve`: what it serves, to whom, and how it ends.
import { once } from 'node:events'
import { readdirSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { run, start } from './helpers/cli.js'
import { temporaryFolder } from './helpers/folder.js'
import { plainTemplate } from './helpers/server.js'

/** The command, listening on a port of its own. */
async function serve(t: ExecutionContext, ...args: string[]) {
  const program = start(['serve', '--port', '0', '--json', ...args])
  t.teardown(() => program.child.kill('SIGKILL'))
  const [said] = (await once(program.child.stdout!, 'data')) as [Buffer]
  const { url, models } = JSON.parse(said.toString()) as { url: string; models: string[] }
  const post = async (path: string, body: object, headers: Record<string, string> = {}) => {
    const answer = await fetch(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    })
    // oxlint-disable-next-line typescript/no-explicit-any
    return { status: answer.status, body: (await answer.json()) as any }
  }
  return { ...program, url, models, post }
}

const completion = { model: 'default', prompt: 'The ship', max_tokens: 4, temperature: 0 }

test('the default model, on this machine only; Ctrl-C lets what is under way end', async (t) => {
  const { child, ended, url, models, post } = await serve(t, '--prefix-cache', '64000000')
  t.regex(url, /^http:\/\/127\.0\.0\.1:\d+$/)
  t.deepEqual(models, ['default'])
  t.is((await post('/v1/completions', completion)).status, 200)
  const known: number[] = []
  for (const question of ['Who?', 'Where?', 'When?']) {
    const prompt = `It was a dark and stormy night, and the ship lay at anchor in the harbour. ${question}`
    const { usage } = (await post('/v1/completions', { ...completion, prompt })).body
    known.push(usage.prompt_tokens_details.cached_tokens)
  }
  t.deepEqual(known.slice(0, 2), [0, 0])
  t.true(known[2]! >= 16, String(known))
  const metrics = await (await fetch(`${url}/metrics`)).text()
  t.regex(
    metrics,
    new RegExp(`^node_mamba_tokens_total\\{model="default",kind="cached"\\} ${known[2]}$`, 'm'),
  )
  const slow = post('/v1/completions', { ...completion, max_tokens: 600, logit_bias: { 0: -100 } })
  for (;;) {
    const metrics = await (await fetch(`${url}/metrics`)).text()
    if (metrics.includes('node_mamba_active_requests 1')) break
  }
  child.kill('SIGINT')
  t.is((await slow).body.usage.completion_tokens, 600)
  t.is((await ended).status, 130)
})

test('models with names, a template, keys, limits and sessions on disk', async (t) => {
  const folder = temporaryFolder(t)
  const keys = join(folder, 'keys.txt')
  writeFileSync(keys, '# of the team\nfirst-key\n\n  second-key  \n')
  const template = join(folder, 'template.jinja')
  writeFileSync(template, plainTemplate)
  const sessions = join(folder, 'sessions')
  const { url, post } = await serve(
    t,
    ...['-m', 'small=default', '-m', './models/mamba-novels-7m', '--api-key-file', keys],
    ...['--chat-template', template, '--sessions', sessions, '--cors-origin', 'https://page.example'],
    ...['--max-tokens', '5', '--max-prompt-tokens', '20', '--max-body', '2000', '--queue', '2'],
  )
  const key = { authorization: 'Bearer second-key' }
  t.is((await post('/v1/completions', completion)).status, 401)
  const models = (await (await fetch(`${url}/v1/models`, { headers: key })).json()) as {
    data: { id: string }[]
  }
  t.deepEqual(
    models.data.map(({ id }) => id),
    ['small', 'mamba-novels-7m'],
  )
  const small = { ...completion, model: 'small' }
  t.is((await post('/v1/completions', { ...small, session: 'a' }, key)).status, 200)
  t.is(readdirSync(sessions).length, 1)
  const codes = []
  for (const change of [
    { max_tokens: 6 },
    { prompt: 'The ship at sea '.repeat(9) },
    { prompt: 'x'.repeat(3000) },
    { n: 100 },
  ])
    codes.push((await post('/v1/completions', { ...small, ...change }, key)).body.error.code)
  t.deepEqual(codes, ['max_tokens_too_large', 'context_length_exceeded', 'body_too_large', 'queue_full'])
  const chat = { model: 'small', messages: [{ role: 'user', content: 'Hi' }], max_tokens: 2 }
  t.is((await post('/v1/chat/completions', chat, key)).status, 200)
  const health = await fetch(`${url}/health`, { headers: { origin: 'https://page.example' } })
  t.is(health.headers.get('access-control-allow-origin'), 'https://page.example')
})

test('keys from the environment; an empty list lets nobody in', async (t) => {
  const program = start(['serve', '--port', '0', '--json'], { env: { NODE_MAMBA_API_KEYS: 'one,#two' } })
  t.teardown(() => program.child.kill('SIGKILL'))
  const [said] = (await once(program.child.stdout!, 'data')) as [Buffer]
  const { url } = JSON.parse(said.toString()) as { url: string }
  t.is((await fetch(`${url}/v1/models`)).status, 401)
  t.is((await fetch(`${url}/v1/models`, { headers: { authorization: 'Bearer #two' } })).status, 200)
  const empty = join(temporaryFolder(t), 'keys.txt')
  writeFileSync(empty, '# none\n')
  const refused = run(['serve', '--port', '0', '--api-key-file', empty])
  t.is(refused.status, 2)
  t.regex(refused.stderr, /^OPTION_INVALID: .*keys\.txt holds no usable keys/)
})

test('what cannot be served', (t) => {
  for (const [args, status, message] of [
    [['-m', 'a=default', '-m', 'a=default'], 2, /^OPTION_INVALID: two models are called 'a'/],
    [['-m', '../x=default'], 2, /^OPTION_INVALID: option `models` is 'x=default'/],
    [['-m', 'a b=./nowhere'], 2, /^OPTION_INVALID: option `models` is 'a b'/], // before it is loaded
    [['--api-key-file', './nowhere'], 1, /^FILE_NOT_FOUND: .*nowhere/],
    [['--chat-template', './nowhere'], 1, /^FILE_NOT_FOUND: .*nowhere/],
    [
      ['-m', './nowhere', '--request-seconds', '0'],
      2,
      /^OPTION_INVALID: option `limits\.requestSeconds` is 0/,
    ],
    [['-m', './nowhere', '--drain-seconds', '-1'], 2, /^OPTION_INVALID: option `drainSeconds` is -1/],
    [['--port', '70000'], 2, /^OPTION_INVALID: option `port` is 70000/],
    [['--host', '203.0.113.1'], 1, /^IO_ERROR: cannot listen on 203\.0\.113\.1 port/],
  ] as const) {
    const ended = run(['serve', ...args])
    t.deepEqual([ended.status, ended.stdout], [status, ''], `${args.join(' ')}: ${ended.stderr}`)
    t.regex(ended.stderr, message)
  }
})

test('--allow-host lets in a name besides the loopback ones', async (t) => {
  const program = start(['serve', '--port', '0', '--json', '--allow-host', 'mamba.example'])
  t.teardown(() => program.child.kill('SIGKILL'))
  const [said] = (await once(program.child.stdout!, 'data')) as [Buffer]
  const { url } = JSON.parse(said.toString()) as { url: string }
  const ask = (host: string) =>
    new Promise<number>((resolve, reject) => {
      const asked = request(`${url}/health`, { headers: { host } }, (answer) => {
        answer.resume()
        resolve(answer.statusCode!)
      })
      asked.on('error', reject).end()
    })
  t.is(await ask('mamba.example'), 200)
  t.is(await ask('localhost'), 200)
  t.is(await ask('evil.example'), 403)
})
