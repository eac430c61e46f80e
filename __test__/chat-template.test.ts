// Chat templates and the process that they run in: what they are given, and what happens to the process.
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import test from 'ava'
import { ChatTemplate, Mamba } from 'node-mamba'
import { temporaryFolder } from './helpers/folder.js'
import { failure, modelFolder } from './helpers/model.js'

// By itself: it takes the one new child of this process for its template's.
const testLinuxAlone = process.platform === 'linux' ? test.serial : test.skip

const turns = '{% for message in messages %}{{ message.content }}\n{% endfor %}'
const hello = [{ role: 'user', content: 'Hello' }]

test('messages that no template can be given are refused, and the template is as usable as before', async (t) => {
  const template = await ChatTemplate.from(turns)
  t.teardown(() => template.close())
  await t.throwsAsync(template.render('Hello' as never), failure('INVALID_ARGUMENT', /'Hello'.* an array/))
  await t.throwsAsync(
    template.render([{ role: 'user', content: (() => '') as never }]),
    failure('INVALID_ARGUMENT', /messages hold what cannot be copied/),
  )
  t.is(await template.render(hello), 'Hello\n')
})

testLinuxAlone('a process that was killed while it was idle is replaced', async (t) => {
  const children = () =>
    readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(' ').map(Number)
  const before = children()
  const template = await ChatTemplate.from(turns)
  t.teardown(() => template.close())
  const [child] = children().filter((id) => !before.includes(id))
  process.kill(child!, 'SIGKILL')
  while (children().includes(child!)) await wait(5)
  t.is(await template.render(hello), 'Hello\n')
})

test('chat refuses what is no list of stop tokens', async (t) => {
  const folder = join(temporaryFolder(t), 'model')
  cpSync(modelFolder, folder, { recursive: true })
  writeFileSync(join(folder, 'chat_template.jinja'), turns)
  const model = await Mamba.load(folder)
  t.teardown(() => model.dispose())
  const chat = model.chat(hello, { stopTokens: 5 as never })
  await t.throwsAsync(chat, failure('INVALID_ARGUMENT', /`stopTokens` is 5/))
})
