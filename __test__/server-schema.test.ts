// The OpenAPI document says what the server does: schemathesis (Python) makes requests of it, valid ones and others.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import anyTest, { type ExecutionContext } from 'ava'
import { useModel } from './helpers/model.js'
import { testApp, testServer } from './helpers/server.js'

const wanted = 'schemathesis==4.32.5'
const folder = fileURLToPath(new URL(`../.cache/${wanted.replace('==', '-')}`, import.meta.url))
const python = spawnSync('python3', ['-m', 'pip', '--version']).status === 0
const test = python ? anyTest : anyTest.skip

const model = useModel()

/** Runs a program to its end, without holding up the server in this process. */
function run(command: string, args: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string } = {}) {
  const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (output += text))
  return new Promise<{ status: number | null; output: string }>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status) => resolve({ status, output }))
  })
}

async function install(t: ExecutionContext): Promise<void> {
  if (existsSync(`${folder}/schemathesis`)) return
  const { status, output } = await run('python3', [
    '-m',
    'pip',
    'install',
    '--quiet',
    `--target=${folder}`,
    wanted,
  ])
  t.is(status, 0, output)
}

anyTest('the document has every route, and only what it refers to', async (t) => {
  const { send, app } = await testApp(t, model(), { apiKeys: ['k'], limits: { completionTokens: 77 } })
  const { body } = await send('/openapi.json')
  const documented = Object.entries(body.paths as Record<string, object>).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  )
  const routed = app.routes
    .filter(({ method, path }) => method !== 'ALL' && path !== '/openapi.json')
    .map(({ method, path }) => `${method.toLowerCase()} ${path.replace(/:(\w+)(\{.*\})?/, '{$1}')}`)
  t.deepEqual(documented.toSorted(), routed.toSorted())
  const { schemas } = body.components
  for (const [, name] of JSON.stringify(body).matchAll(/"#\/components\/schemas\/(\w+)"/g))
    t.true(Object.hasOwn(schemas, name!))
  t.false(JSON.stringify(body).includes('$defs'))
  t.deepEqual(schemas.CompletionRequest.properties.model.enum, ['novels'])
  t.true(JSON.stringify(schemas.ChatCompletionRequest.properties.max_tokens).includes('"maximum":77'))
})

test('schemathesis finds nothing', async (t) => {
  await install(t)
  const limits = { completionTokens: 20, promptTokens: 2000, choices: 8 }
  const { url } = await testServer(t, model(), { apiKeys: ['k'], limits })
  const { status, output } = await run(
    'python3',
    [
      ...[
        '-m',
        'schemathesis.cli',
        'run',
        `${url}/openapi.json`,
        '--no-color',
        '--seed=1',
        '--max-examples=40',
      ],
      ...['--header=Authorization: Bearer k', '--phases=examples,coverage,fuzzing', '--continue-on-failure'],
      // Not every request of the right form can be answered: an id may be outside of the vocabulary.
      '--exclude-checks=positive_data_acceptance',
    ],
    // It keeps what it found in the folder it runs in.
    { env: { ...process.env, PYTHONPATH: folder }, cwd: folder },
  )
  t.is(status, 0, output)
  t.regex(output, /Tested: 9/)
  t.false(output.includes('Unresolvable'), output)
  t.log(/(\d+) generated, (\d+) passed/.exec(output)?.[0])
})
