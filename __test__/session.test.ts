import { execFileSync } from 'node:child_process'
import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import test from 'ava'
import { Mamba, type Session } from 'node-mamba'
import { randomTensors, tiny, writeConfig, writeSafetensors } from './helpers/checkpoint.js'
import { temporaryFolder } from './helpers/folder.js'
import { failure, reference, useModel } from './helpers/model.js'

const model = useModel()
const prompt = 'It was a dark and stormy night, and the'
const options = { maxTokens: 20, temperature: 0.9, seed: 5 }

async function started(): Promise<Session> {
  const session = model().session()
  await session.append(prompt)
  return session
}

/** What comes next, with the model's certainty about it to the last bit. */
async function next(session: Session) {
  const { tokens, logprobs } = await session.generate(options).result
  return { tokens: [...tokens], logprobs: [...logprobs] }
}

test('a session goes on from call to call as one prompt would', async (t) => {
  const ids = [...model().tokenizer.encode(prompt)]
  const whole = await model().complete(ids, { maxTokens: 20 })
  const session = model().session()
  t.is(session.tokens, 0)
  t.is(await session.append(ids.slice(0, 1)), 1)
  t.is(await session.append(ids.slice(1, 5)), 4)
  t.is(await session.append(''), 0)
  t.is(await session.append(ids.slice(5)), ids.length - 5)
  t.is(session.tokens, ids.length)
  const first = await session.generate({ maxTokens: 8 }).result
  t.is(session.tokens, ids.length + 8)
  const second = await session.generate({ maxTokens: 12 }).result
  t.deepEqual([...first.tokens, ...second.tokens], [...whole.tokens])
  t.is(first.text + second.text, whole.text)
})

test('a fork goes on as its parent, and neither disturbs the other', async (t) => {
  const session = await started()
  const [fork, witness] = [session.fork(), session.fork()]
  const expected = await next(fork)
  await fork.append('Something else.')
  await next(fork)
  t.deepEqual(await next(witness), expected)
  t.deepEqual(await next(session), expected)
})

test('saved and restored sessions go on to the bit: by path, by URL, by bytes', async (t) => {
  const folder = temporaryFolder(t)
  const session = await started()
  await next(session)
  const file = join(folder, 'a.session')
  await session.save(file)
  await session.save(pathToFileURL(join(folder, 'b.session')))
  const bytes = session.toBytes()
  const { tokens } = session
  const expected = await next(session)
  for (const from of [file, pathToFileURL(file), join(folder, 'b.session'), bytes, readFileSync(file)]) {
    const restored = await model().restore(from)
    t.is(restored.tokens, tokens)
    t.deepEqual(await next(restored), expected)
  }
  t.deepEqual(new Uint8Array(readFileSync(file)), bytes)
})

test('a session keeps its own seed, in its file too', async (t) => {
  const session = await started()
  const unseeded = { maxTokens: 20, temperature: 1 }
  const restored = await model().restore(session.toBytes())
  const [a, b] = [await session.generate(unseeded).result, await restored.generate(unseeded).result]
  t.is(a.text, b.text)
  t.not(a.text, (await (await started()).generate(unseeded).result).text)
})

test('an unfinished character survives a session file', async (t) => {
  const ids = [...model().tokenizer.encode('船')]
  t.true(ids.length > 1)
  let session = await started()
  let text = ''
  for (const id of ids) {
    text += (await session.generate({ maxTokens: 1, logitBias: { [id]: 1000 } }).result).text
    session = await model().restore(session.toBytes())
  }
  t.is(text, '船')
})

test('the size does not depend on the length of the context', async (t) => {
  const [short, long] = [await started(), await started()]
  await long.append(reference.prompts[2]!.text)
  await short.append(reference.prompts[1]!.text)
  t.is(short.byteLength, short.toBytes().length)
  // The state, and at most 256 ids for penalties.
  t.true(long.byteLength - short.byteLength <= 256 * 4)
  const before = long.byteLength
  for (let i = 0; i < 5; i++) await long.append(reference.prompts[2]!.text)
  t.true(long.tokens > 4000)
  t.true(Math.abs(long.byteLength - before) < 64)
})

test('one call at a time', async (t) => {
  const session = await started()
  const running = session.generate({ maxTokens: 1_000_000, ignoreEos: true })
  await running.next()
  await t.throwsAsync(session.append('more'), failure('SESSION_BUSY'))
  await t.throwsAsync(session.generate().result, failure('SESSION_BUSY'))
  t.throws(() => session.fork(), failure('SESSION_BUSY'))
  t.throws(() => session.toBytes(), failure('SESSION_BUSY'))
  await t.throwsAsync(session.save('x'), failure('SESSION_BUSY'))
  await running.return()
  t.is(await session.append('m'), 1) // free at once
})

test('an aborted append leaves the session as it was; an aborted generation keeps what it made', async (t) => {
  const session = await started()
  const before = session.toBytes()
  const controller = new AbortController()
  const append = session.append(Array(200_000).fill(7) as number[], { signal: controller.signal })
  setTimeout(() => controller.abort(), 20)
  await t.throwsAsync(append, failure('ABORTED'))
  t.deepEqual(session.toBytes(), before)

  const { tokens } = session
  let steps = 0
  for await (const { token } of session.generate({ maxTokens: 1_000_000, ignoreEos: true })) {
    if (token >= 0 && ++steps === 3) break
  }
  t.true(session.tokens >= tokens + 3)
  t.is((await session.generate({ maxTokens: 2 }).result).tokens.length, 2)
})

test('a session with nothing in it has nothing to go on from', async (t) => {
  await t.throwsAsync(model().session().generate().result, failure('EMPTY_PROMPT'))
})

test('another model refuses a session; the same one in another dtype takes it', async (t) => {
  const folder = temporaryFolder(t)
  writeConfig(folder, tiny)
  writeSafetensors(join(folder, 'model.safetensors'), randomTensors(tiny))
  const other = await Mamba.load(folder)
  const bf16 = await Mamba.load('default', { dtype: 'bf16' })
  t.teardown(() => Promise.all([other.dispose(), bf16.dispose()]))
  const session = await started()
  await t.throwsAsync(other.restore(session.toBytes()), failure('SESSION_MISMATCH'))
  const restored = await bf16.restore(session.toBytes())
  t.is((await restored.generate({ maxTokens: 3 }).result).tokens.length, 3)
})

test('what is no session is refused: damaged, truncated, of an unknown version, too large, missing', async (t) => {
  const folder = temporaryFolder(t)
  const bytes = (await started()).toBytes()
  const restore = (from: Uint8Array) => model().restore(from)
  await t.throwsAsync(restore(new Uint8Array()), failure('SESSION_INVALID'))
  await t.throwsAsync(restore(bytes.slice(0, -1)), failure('SESSION_INVALID'))
  await t.throwsAsync(restore(bytes.slice(0, 100)), failure('SESSION_INVALID'))
  await t.throwsAsync(restore(new TextEncoder().encode('{"not":"a session"}')), failure('SESSION_INVALID'))

  const format = Buffer.from(bytes).indexOf('node-mamba-session/1')
  t.true(format >= 0)
  const newer = bytes.slice()
  newer[format + 'node-mamba-session/'.length] = '9'.charCodeAt(0)
  await t.throwsAsync(
    restore(newer),
    failure('SESSION_VERSION', /node-mamba-session\/9.*node-mamba-session\/1/),
  )

  await t.throwsAsync(model().restore(join(folder, 'none')), failure('FILE_NOT_FOUND', /none/))
  await t.throwsAsync(model().restore(folder), failure('SESSION_INVALID', /not a file/))
  if (process.platform !== 'win32') {
    const pipe = join(folder, 'pipe') // opening it would wait for a writer
    execFileSync('mkfifo', [pipe])
    await t.throwsAsync(model().restore(pipe), failure('SESSION_INVALID', /not a file/))
  }
  await t.throwsAsync(model().restore(42 as never), failure('INVALID_ARGUMENT', /42/))
  const large = join(folder, 'large')
  writeFileSync(large, Buffer.alloc(32 << 20))
  await t.throwsAsync(model().restore(large), failure('SESSION_INVALID'))
})

test('a failing save leaves the file that was there, and nothing else', async (t) => {
  const folder = temporaryFolder(t)
  const session = await started()
  await t.throwsAsync(session.save(join(folder, 'no/such/folder')), failure('FILE_NOT_FOUND', /no/))
  const file = join(folder, 'a.session')
  await session.save(file)
  const { size } = statSync(file)
  await session.append('more')
  await session.save(file) // over the old one
  t.is((await model().restore(file)).tokens, session.tokens)
  t.true(Math.abs(statSync(file).size - size) < 64)
  t.deepEqual(readdirSync(folder), ['a.session'])
})

test('a full disk is named, and the file that was there stays', async (t) => {
  const folder = temporaryFolder(t)
  if (spawnSync('unshare', ['-rm', 'true']).status !== 0) {
    t.log('SKIPPED: a file system of 64 KiB takes Linux and user namespaces')
    return t.pass()
  }
  const script = `import { Mamba } from './dist/index.js'
    import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
    writeFileSync('${folder}/a', 'what was there')
    const model = await Mamba.load()
    const { code, message } = await model.session().save('${folder}/a').catch((error) => error)
    await model.dispose()
    console.log(code, message.includes('${folder}/a'), readFileSync('${folder}/a', 'utf8'), readdirSync('${folder}').join())`
  const { stdout, stderr } = spawnSync(
    'unshare',
    [
      '-rm',
      'sh',
      '-c',
      `mount -t tmpfs -o size=64k none ${folder} && exec "$0" --input-type=module -e "$1"`,
      process.execPath,
      script,
    ],
    { cwd: new URL('..', import.meta.url), encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } },
  )
  t.is(stdout, 'DISK_FULL true what was there a\n', stderr)
})
