// `node-mamba chat`: turns, what a session's file keeps, and how it ends.
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { run, start, startInTerminal, testInTerminal } from './helpers/cli.js'
import { temporaryFolder } from './helpers/folder.js'
import { modelFolder, useModel } from './helpers/model.js'

const model = useModel()
/** As the tests' model, whose results are the same to the bit whatever is computed together. */
const f32 = ['--dtype', 'f32']

interface Saved {
  tokens: number
  messages: { role: string; content: string }[]
}

/** What the model says to a conversation without a chat template. */
async function reply(prompt: string, maxTokens: number): Promise<string> {
  const { text } = await model().complete(prompt, { maxTokens, stop: '\nUser:' })
  return text.trim()
}

test('lines from a pipe are answered in turns, as JSON and in words', async (t) => {
  const args = ['chat', ...f32, '-n', '12', '--system', 'A talk about ships.']
  const { status, stdout, stderr } = run([...args, '--json'], { input: 'Hello\n\nWhat now?\n' })
  t.deepEqual([status, stderr], [0, ''])
  const replies = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { text: string; finishReason: string; usage: object })
  const start = 'A talk about ships.\nUser: Hello\nAssistant:'
  const first = await reply(start, 12)
  const second = await reply(`${start} ${first}\nUser: What now?\nAssistant:`, 12)
  t.deepEqual(
    replies.map(({ text }) => text.trim()),
    [first, second],
  )
  t.is(run(args, { input: 'Hello\n/exit\nWhat now?\n' }).stdout.trim(), first)
})

test('--session keeps the conversation: two calls are as one', (t) => {
  const folder = temporaryFolder(t)
  const file = join(folder, 'talk.session')
  const args = ['chat', ...f32, '-n', '10', '--json', '--session']
  const both = run([...args, join(folder, 'one')], { input: 'Hello\nWhat now?\n' })
  const parts = ['Hello\n', 'What now?\n'].map((input) => run([...args, file], { input }))
  const texts = (output: string) =>
    [...output.matchAll(/"text":("(?:[^"\\]|\\.)*")/g)].map(([, text]) => text)
  t.is(texts(both.stdout).length, 2)
  t.deepEqual(texts(parts[0]!.stdout + parts[1]!.stdout), texts(both.stdout))

  const messages = `${file}.messages.json`
  const saved = JSON.parse(readFileSync(messages, 'utf8')) as Saved
  t.deepEqual(
    saved.messages.map(({ role }) => role),
    ['user', 'assistant', 'user', 'assistant'],
  )
  // Without the state, or with that of another turn, it is computed again from the messages.
  const next = run([...args, join(folder, 'one')], { input: 'Again\n' })
  rmSync(file)
  const again = run([...args, file], { input: 'Again\n' })
  t.deepEqual(texts(again.stdout), texts(next.stdout))
  t.true(existsSync(file))

  writeFileSync(messages, '{}')
  const { status, stderr } = run([...args, file], { input: 'x\n' })
  t.is(status, 1)
  t.regex(stderr, /^SESSION_INVALID: .*talk\.session\.messages\.json/)
})

test('the chat template of the checkpoint is used, and a state is gone on with under it too', async (t) => {
  const folder = join(temporaryFolder(t), 'model')
  cpSync(modelFolder, folder, { recursive: true })
  const template =
    '{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}'
  writeFileSync(join(folder, 'chat_template.jinja'), template)
  const args = ['chat', ...f32, '-m', folder, '-n', '10', '--json', '--session', join(folder, 'talk')]
  const said: string[] = []
  const messages: { role: string; content: string }[] = []
  for (const content of ['Hello', 'What now?']) {
    const { status, stdout, stderr } = run(args, { input: `${content}\n` })
    t.deepEqual([status, stderr], [0, ''])
    said.push((JSON.parse(stdout) as { text: string }).text.trim())
    messages.push({ role: 'user', content })
    const prompt = messages.map((message) => `[${message.role}] ${message.content}\n`).join('')
    const { text } = await model().complete(`${prompt}[assistant]`, { maxTokens: 10 })
    messages.push({ role: 'assistant', content: text.trim() })
  }
  t.deepEqual(said, [messages[1]!.content, messages[3]!.content])
})

test('a signal in mid-reply ends it with 130; the conversation is saved', async (t) => {
  const file = join(temporaryFolder(t), 'talk.session')
  const program = start(['chat', '-n', '100000', '--session', file])
  program.child.stdin.write('Hello\n')
  await program.until((out) => out.length > 100)
  program.child.kill('SIGINT')
  const { status, stderr } = await program.ended
  t.deepEqual([status, stderr], [130, ''])
  const { messages } = JSON.parse(readFileSync(`${file}.messages.json`, 'utf8')) as Saved
  t.is(messages[0]!.content, 'Hello')
  t.true(messages[1]!.content.length >= 90)
})

testInTerminal('in a terminal Ctrl-C stops the reply, and at the prompt the program', async (t) => {
  const program = startInTerminal(['chat', '-n', '100000'])
  const prompts = () => program.out.split('\x1b[36m>').length - 1
  await program.until(() => prompts() >= 1)
  program.child.stdin.write('Hello\r')
  await program.until((out) => out.length > 300)
  const before = prompts()
  program.child.stdin.write('\x03')
  await program.until(() => prompts() > before)
  program.child.stdin.write('\x03')
  t.is((await program.ended).status, 130)
})
