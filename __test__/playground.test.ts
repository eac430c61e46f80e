// The playground: what the page's endpoints answer, and the page itself in headless Chromium.
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'
import { createApp, serve, type RunningServer } from 'node-mamba/server'
import { chromium, type Browser, type Page } from 'playwright-core'
import { useModel } from './helpers/model.js'

const model = useModel()
const folder = fileURLToPath(new URL('../dist/playground', import.meta.url))
/** Where CI has to have it: .ci/run installs it. */
const required = process.env.CI !== undefined && process.platform === 'linux' && process.arch === 'x64'
/** Debian's; on another system CHROMIUM says where it is. */
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium'

interface TokenEvent {
  type: 'token'
  id: number
  text: string
  logprob: number
  top: { id: number; text: string; logprob: number }[]
}
interface StartEvent {
  type: 'start'
  state: string
  computed: number
  context: number
  bytes: number
}
interface EndEvent {
  type: 'end'
  finishReason: string
  context: number
  bytes: number
}

/** Asks the endpoint; the events, or the error's code. */
async function ask(fetch: (path: string, init: RequestInit) => Response | Promise<Response>, body: object) {
  const response = await fetch('/playground/api/generate', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'default', max_tokens: 12, temperature: 0, ...body }),
  })
  const text = await response.text()
  if (response.status !== 200) {
    const { error } = JSON.parse(text) as { error: { code: string } }
    throw new Error(`${response.status} ${error.code}`)
  }
  const events = text
    .trim()
    .split('\n\n')
    .map((line) => JSON.parse(line.slice(6)) as StartEvent | TokenEvent | EndEvent)
  return {
    start: events[0] as StartEvent,
    tokens: events.slice(1, -1) as TokenEvent[],
    end: events.at(-1) as EndEvent,
  }
}

async function api(options: { apiKeys?: string[]; limits?: { promptTokens: number } } = {}) {
  const { app, close } = await createApp({ models: model(), playground: folder, ...options })
  return { fetch: (path: string, init?: RequestInit) => app.request(path, init), close }
}

test('generate: tokens with what else could have been there, and a state of constant size', async (t) => {
  const { fetch, close } = await api()
  const prompt = 'It was a dark and stormy night'
  const { start, tokens, end } = await ask(fetch, { prompt })
  const expected = await model().complete(prompt, { maxTokens: 12, logprobs: 8 })
  t.deepEqual(
    tokens.map(({ id }) => id),
    [...expected.tokens],
  )
  t.is(tokens.map(({ text }) => text).join(''), expected.text)
  for (const [i, token] of tokens.entries()) {
    t.deepEqual(
      token.top.map(({ id, logprob }) => ({ token: id, logprob })),
      expected.top![i]!,
    )
    t.is(token.top[0]!.text, model().tokenizer.decode([token.top[0]!.id]))
  }
  const length = model().tokenizer.encode(prompt).length
  t.deepEqual([start.context, start.computed, end.context], [length, length, length + 12])
  t.is(end.finishReason, 'length')
  t.is(start.bytes, end.bytes)
  await close()
})

test('generate: goes on from any token with a copy of the state, the prompt is not read again', async (t) => {
  const { fetch, close } = await api()
  const prompt = 'It was a dark and stormy night'
  const { start, tokens } = await ask(fetch, { prompt })
  const kept = tokens.slice(0, 4).map(({ id }) => id)
  const other = tokens[4]!.top[1]!.id
  const again = await ask(fetch, { prompt, state: start.state, tokens: [...kept, other] })
  t.is(again.start.state, start.state)
  t.is(again.start.computed, 5)
  // The library, on the same ids in one go.
  const ids = [...model().tokenizer.encode(prompt), ...kept, other]
  const expected = await model().complete(ids, { maxTokens: 12 })
  t.deepEqual(
    again.tokens.map(({ id }) => id),
    [...expected.tokens],
  )
  // A state of another prompt, or one that is gone, is not used, and does no harm.
  const elsewhere = await ask(fetch, { prompt: 'The ship', state: start.state })
  t.not(elsewhere.start.state, start.state)
  t.deepEqual(
    elsewhere.tokens.map(({ id }) => id),
    [...(await model().complete('The ship', { maxTokens: 12 })).tokens],
  )
  t.is(
    (await ask(fetch, { prompt, state: 'gone', tokens: [...kept, other] })).start.computed,
    start.computed + 5,
  )
  await close()
})

test('generate: what is wrong', async (t) => {
  const { fetch, close } = await api({ limits: { promptTokens: 100 } })
  for (const [body, error] of [
    [{ prompt: '' }, '400 empty_prompt'],
    [{ prompt: 'x', model: 'none' }, '404 model_not_found'],
    [{ prompt: 'x', max_tokens: 100_000 }, '400 max_tokens_too_large'],
    [{ prompt: 'x', max_tokens: 0 }, '400 invalid_value'],
    [{ prompt: 'x', tokens: [-1] }, '400 invalid_value'],
    [{ prompt: 'x', tokens: [4_000_000] }, '400 token_out_of_range'],
    [{ prompt: 'x', tokens: Array.from({ length: 100 }, () => 1) }, '400 context_length_exceeded'],
    [{ prompt: 'x', stat: 'y' }, '400 unknown_parameter'],
  ] as const) {
    await t.throwsAsync(ask(fetch, body), { message: error })
  }
  await close()
})

test('keys: the endpoints ask for them, the page does not; states are their makers’ own', async (t) => {
  const { fetch, close } = await api({ apiKeys: ['one', 'two'] })
  const as = (key: string) => (path: string, init: RequestInit) =>
    fetch(path, { ...init, headers: { ...(init.headers as object), authorization: `Bearer ${key}` } })
  await t.throwsAsync(ask(fetch, { prompt: 'The ship' }), { message: '401 invalid_api_key' })
  t.is((await fetch('/playground/api/models')).status, 401)
  t.is((await fetch('/')).status, 200)
  const { start } = await ask(as('one'), { prompt: 'The ship' })
  t.is((await ask(as('one'), { prompt: 'The ship', state: start.state })).start.computed, 0)
  t.not((await ask(as('two'), { prompt: 'The ship', state: start.state })).start.computed, 0)
  await close()
})

test('the page: small, and nothing from elsewhere', async (t) => {
  const { fetch, close } = await api()
  const page = await fetch('/')
  const html = await page.text()
  t.regex(page.headers.get('content-security-policy')!, /default-src 'self'/)
  const files = [...html.matchAll(/(?:src|href)="(\.\/[^"]+)"/g)].map(([, path]) => path!)
  t.is(files.length, 2)
  let bytes = html.length
  for (const file of files) bytes += (await (await fetch(file.slice(1))).arrayBuffer()).byteLength
  t.log(`${(bytes / 1000).toFixed(0)} kB`)
  t.true(bytes < 60_000)
  await close()
})

/** One browser and one server for the tests of the page. */
let browser: Browser | undefined
let server: RunningServer | undefined
test.before(async () => {
  if (!existsSync(executablePath)) return // the tests say so
  browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
  server = await serve({ models: model(), playground: folder, port: 0 })
})
test.after.always(async () => {
  await browser?.close()
  await server?.close()
})

/** A test on the page, freshly opened, on which nothing may go wrong. */
function testPage(
  title: string,
  body: (t: ExecutionContext, page: Page) => Promise<void>,
  options: { colorScheme?: 'light' | 'dark' } = {},
): void {
  const here = existsSync(executablePath) || required ? test : test.skip
  here(title, async (t) => {
    if (!browser) throw new Error(`${executablePath} is not there: install Chromium, or set CHROMIUM`)
    const page = await browser.newPage(options)
    page.setDefaultTimeout(20_000)
    t.teardown(() => page.close())
    const problems: string[] = []
    page.on('pageerror', (error) => problems.push(String(error)))
    page.on('console', (message) => {
      // An answer that refuses is shown on the page.
      if (message.type() === 'error' && !message.text().startsWith('Failed to load resource')) {
        problems.push(message.text())
      }
    })
    await page.goto(server!.url)
    await body(t, page)
    t.deepEqual(problems, [])
  })
}

testPage(
  'write: tokens stream, a chosen one opens its alternatives, one of them goes on',
  async (t, page) => {
    await page.getByLabel('Prompt').first().fill('It was a dark and stormy night')
    await slide(page, 'Temperature', 0)
    await page.getByRole('button', { name: 'Generate' }).click()
    await page.getByText('Text: finished, 120 tokens').waitFor({ state: 'attached' })
    const expected = await model().complete('It was a dark and stormy night', { maxTokens: 120, logprobs: 8 })
    const shown = async () => (await page.locator('.token').allTextContents()).join('')
    t.is(await shown(), expected.text)

    // The state is of one size before and after; the text is not.
    const size = async () => (await page.locator('.state > div').nth(1).textContent())!
    const before = await size()
    const bytes = model().session().byteLength.toLocaleString('en-US')
    t.is(before, `State${bytes} bytes constant`)

    await page.locator('.token').nth(3).click()
    const alternatives = page.getByRole('region', { name: 'Token 4' }).getByRole('listitem')
    t.is(await alternatives.count(), 8)
    const second = expected.top![3]![1]!
    const probability = `${(Math.exp(second.logprob) * 100).toFixed(1)} %`
    t.true((await alternatives.nth(1).textContent())!.endsWith(probability))
    await alternatives.nth(1).getByRole('button').click()
    await page.getByText('Text: finished, 124 tokens').waitFor({ state: 'attached' })
    const ids = [
      ...model().tokenizer.encode('It was a dark and stormy night'),
      ...expected.tokens.slice(0, 3),
      second.token,
    ]
    const other = await model().complete(ids, { maxTokens: 120 })
    t.true((await shown()).endsWith(other.text))
    t.is(await size(), before)
    // Only what was kept of the text was read; the prompt is in the state.
    t.regex((await page.locator('.state > div').nth(2).textContent())!, /Read for this4 of \d+ tokens/)
  },
)

testPage('write: stop, by button and by key; a prompt that is refused says why', async (t, page) => {
  await slide(page, 'Length', 1000)
  for (const stop of [
    () => page.getByRole('button', { name: 'Stop' }).click(),
    () => page.keyboard.press('Escape'),
  ]) {
    await page.getByLabel('Prompt').first().focus()
    await page.keyboard.press('Control+Enter')
    await page.locator('.token').nth(5).waitFor()
    await stop()
    await page.getByText(/Text: stopped after \d+ tokens/).waitFor({ state: 'attached' })
    t.true((await page.locator('.token').count()) < 1000)
  }
  await page.getByLabel('Prompt').first().fill('word '.repeat(40_000))
  await page.getByRole('button', { name: 'Generate' }).click()
  await page
    .getByRole('status')
    .getByText(/the prompt has more tokens than this server takes/)
    .waitFor()
})

testPage('a wrong key is refused in words, the right one opens the page', async (t, page) => {
  const guarded = await serve({ models: model(), playground: folder, port: 0, apiKeys: ['right'] })
  t.teardown(() => guarded.close())
  await page.goto(guarded.url)
  const field = page.getByLabel('This server asks for an API key')
  const use = page.getByRole('button', { name: 'Use it' })
  await field.waitFor()
  t.is(await page.getByRole('alert').count(), 0)
  await field.fill('wrong')
  await use.click()
  await page.getByRole('alert').getByText('The server does not take this key.').waitFor()
  t.is(await field.getAttribute('aria-invalid'), 'true')
  await field.fill('right')
  await use.click()
  await page.getByRole('tab', { name: 'Write' }).waitFor()
  t.is(await field.count(), 0)
})

testPage('keyboard alone: tabs, tokens and alternatives', async (t, page) => {
  await slide(page, 'Length', 20)
  await page.getByRole('button', { name: 'Generate' }).press('Enter')
  await page.getByText('Text: finished').waitFor({ state: 'attached' })
  await page.locator('.token').first().focus()
  await page.keyboard.press('ArrowRight')
  await page.keyboard.press('ArrowRight')
  t.is(await page.evaluate('document.activeElement.dataset.index'), '2')
  // One token only is in the tab order, so the next stop is what can be done with it.
  await page.keyboard.press('Tab')
  t.is(await page.evaluate('document.activeElement.textContent'), 'Regenerate from here')
  await page.keyboard.press('Enter')
  await page.getByText('Text: finished, 22 tokens').waitFor({ state: 'attached' })

  await page.getByRole('tab', { name: 'Write' }).focus()
  await page.keyboard.press('ArrowRight')
  t.is(await page.evaluate('document.activeElement.textContent'), 'Compare')
  t.is(await page.getByRole('tab', { name: 'Compare' }).getAttribute('aria-selected'), 'true')
  t.true(await page.getByRole('tabpanel', { name: 'Compare' }).isVisible())
})

testPage('compare: two settings side by side', async (t, page) => {
  await page.getByRole('tab', { name: 'Compare' }).click()
  const panel = page.getByRole('tabpanel', { name: 'Compare' })
  t.regex(await panel.getByRole('textbox', { name: 'Prompt' }).inputValue(), /^The ship/)
  await panel.getByRole('button', { name: 'Generate' }).click()
  for (const side of ['A', 'B']) {
    await panel.getByText(new RegExp(`^${side}: finished`)).waitFor({ state: 'attached' })
  }
  const text = async (side: string) =>
    (await panel.getByRole('region', { name: side, exact: true }).locator('.token').allTextContents()).join(
      '',
    )
  // A is greedy.
  t.is(
    await text('A'),
    (await model().complete('The ship sailed out of the harbour', { maxTokens: 120 })).text,
  )
  t.not(await text('B'), await text('A'))
})

testPage('embed: the matrix is the library’s, and the map puts like by like', async (t, page) => {
  await page.getByRole('tab', { name: 'Embed' }).click()
  await page.getByRole('button', { name: 'Embed' }).click()
  await page.getByText('6 texts embedded').waitFor({ state: 'attached' })
  const texts = (await page.getByLabel(/Texts/).inputValue()).split('\n')
  const vectors = await model().embed(texts)
  const cells = (await page.locator('.matrix tbody td').allTextContents()).map(Number)
  const dot = (i: number, j: number) => vectors[i]!.reduce((sum, x, k) => sum + x * vectors[j]![k]!, 0)
  t.is(cells.length, 36)
  for (const [n, cell] of cells.entries()) t.true(Math.abs(cell - dot(Math.floor(n / 6), n % 6)) < 0.0051)

  const points = await page
    .locator('.map circle')
    .evaluateAll((circles) =>
      circles.map((circle) => [Number(circle.getAttribute('cx')), Number(circle.getAttribute('cy'))]),
    )
  const distance = (i: number, j: number) =>
    Math.hypot(points[i]![0]! - points[j]![0]!, points[i]![1]! - points[j]![1]!)
  // The texts come in three pairs.
  for (const [i, j] of [
    [0, 1],
    [2, 3],
    [4, 5],
  ] as const) {
    for (let k = 0; k < 6; k++)
      if (k !== i && k !== j) t.true(distance(i, j) < distance(i, k), `${i} ${j} ${k}`)
  }
})

for (const colorScheme of ['light', 'dark'] as const) {
  const title = `axe finds nothing wrong on any tab, in the ${colorScheme}`
  const body = async (t: ExecutionContext, page: Page) => {
    await page.evaluate(readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8'))
    await page.getByRole('button', { name: 'Generate' }).click()
    await page.getByText('Text: finished').waitFor({ state: 'attached' })
    await page.locator('.token').nth(2).click()
    await checkAccessibility(t, page)
    await page.getByRole('tab', { name: 'Compare' }).click()
    await page.getByRole('tabpanel', { name: 'Compare' }).getByRole('button', { name: 'Generate' }).click()
    await page.getByText('B: finished').waitFor({ state: 'attached' })
    await checkAccessibility(t, page)
    await page.getByRole('tab', { name: 'Embed' }).click()
    await page.getByRole('button', { name: 'Embed' }).click()
    await page.locator('.map').waitFor()
    await checkAccessibility(t, page)
  }
  testPage(title, body, { colorScheme })
}

async function checkAccessibility(t: ExecutionContext, page: Page): Promise<void> {
  const violations = (await page.evaluate(
    'axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.slice(0, 3).map(({ html, failureSummary }) => `${html}: ${failureSummary}`)]))',
  )) as unknown[]
  t.deepEqual(violations, [])
}

testPage('a server that asks for keys: the page does, too', async (t, page) => {
  const guarded = await serve({ models: model(), playground: folder, port: 0, apiKeys: ['secret'] })
  t.teardown(() => guarded.close())
  await page.goto(guarded.url)
  await page.getByLabel('This server asks for an API key').fill('secret')
  await page.getByRole('button', { name: 'Use it' }).click()
  await slide(page, 'Length', 5)
  await page.getByRole('button', { name: 'Generate' }).click()
  await page.getByText('Text: finished').waitFor({ state: 'attached' })
  t.is(await page.locator('.token').count(), 5)
})

/** Sets a slider of the tab that is shown. */
async function slide(page: Page, label: string, value: number): Promise<void> {
  await page.getByLabel(label).first().fill(String(value))
}
