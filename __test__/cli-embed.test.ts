// `node-mamba embed`: JSON lines in and out, what is wrong with a line, and going on after a SIGKILL. With
// NODE_MAMBA_SOAK=1 100,000 texts instead of 5,000.
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { run, start, testPosix } from './helpers/cli.js'
import { temporaryFolder } from './helpers/folder.js'
import { useModel } from './helpers/model.js'

// Memory is read from /proc.
const testLinux = process.platform === 'linux' ? test : test.skip
const soak = process.env.NODE_MAMBA_SOAK === '1'
const model = useModel()
/** As the tests' model, whose results are the same to the bit whatever is computed together. */
const f32 = ['--dtype', 'f32']

interface Record {
  line: number
  id?: unknown
  embedding: number[]
}

const records = (output: string) =>
  output
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record)

test('vectors are the library’s to the last bit, with line and id, in the order of the lines', async (t) => {
  const input = ['"a ship"', '', '{"id": 7, "text": "a boat"}', '{"text":"é\\n✓","id":{"a":[1]}}', '"last"']
  const { status, stdout, stderr } = run(['embed', ...f32], { input: input.join('\n') })
  t.deepEqual([status, stderr], [0, ''])
  const found = records(stdout)
  const vectors = await model().embed(['a ship', 'a boat', 'é\n✓', 'last'])
  t.deepEqual(
    found.map(({ line, id }) => [line, id]),
    [
      [1, undefined],
      [3, 7],
      [4, { a: [1] }],
      [5, undefined],
    ],
  )
  t.deepEqual(
    found.map(({ embedding }) => Float32Array.from(embedding)),
    vectors,
  )
})

test('options: pooling, dimensions, normalize, base64; a file in, a file out', async (t) => {
  const folder = temporaryFolder(t)
  const [input, output] = [join(folder, 'in.jsonl'), join(folder, 'out.jsonl')]
  writeFileSync(input, '"a ship at sea"\r\n"a boat"\r\n')
  const args = ['--pooling', 'last', '--dimensions', '16', '--no-normalize', '--encoding', 'base64']
  t.deepEqual(run(['embed', input, '-o', output, ...f32, ...args]), { status: 0, stdout: '', stderr: '' })
  const vectors = await model().embed(['a ship at sea', 'a boat'], {
    pooling: 'last',
    dimensions: 16,
    normalize: false,
  })
  const found = (records(readFileSync(output, 'utf8')) as unknown as { embedding: string }[]).map(
    ({ embedding }) => {
      const bytes = Buffer.from(embedding, 'base64')
      return Float32Array.from({ length: 16 }, (_, i) => bytes.readFloatLE(4 * i))
    },
  )
  t.deepEqual(found, vectors)
})

test('a line that is wrong is named; what comes before it is written', (t) => {
  const folder = temporaryFolder(t)
  for (const [i, [line, problem]] of (
    [
      ['{"text": "unfinished', 'is not JSON'],
      ['["a", "b"]', 'is neither a string nor an object with a string "text"'],
      ['null', 'is neither'],
      ['{"txt": "x"}', 'is neither'],
      ['{"text": 5}', 'is neither'],
      ['""', 'is an empty text'],
      [Buffer.from([0x22, 0xff, 0xfe, 0x22]), 'is not UTF-8'],
      [`"${'x'.repeat(65 << 20)}"`, 'is longer than 67108864 bytes'],
    ] as [string | Buffer, string][]
  ).entries()) {
    const input = Buffer.concat([
      Buffer.from('"one"\n\n"three"\n'),
      Buffer.from(line),
      Buffer.from('\n"five"\n'),
    ])
    const output = join(folder, String(i))
    const { status, stderr } = run(['embed', '-o', output], { input })
    t.is(status, 1)
    t.true(stderr.startsWith(`INVALID_ARGUMENT: standard input: line 4 ${problem}`), stderr.slice(0, 200))
    t.deepEqual(
      records(readFileSync(output, 'utf8')).map(({ line }) => line),
      [1, 3],
    )
  }
})

test('files: missing, a folder, an output that exists', (t) => {
  const folder = temporaryFolder(t)
  const input = join(folder, 'in.jsonl')
  writeFileSync(input, '"a"\n')
  for (const [args, message] of [
    [[join(folder, 'none')], /^FILE_NOT_FOUND: /],
    [[folder], /^IO_ERROR: .* is a folder/],
    [[input, '-o', join(folder, 'no', 'folder')], /^FILE_NOT_FOUND: /],
    [[input, '-o', input], /^INVALID_ARGUMENT: .* exists, and nothing is overwritten/],
  ] as const) {
    const { status, stdout, stderr } = run(['embed', ...args])
    t.deepEqual([status, stdout], [1, ''])
    t.regex(stderr, message)
  }
  t.is(readFileSync(input, 'utf8'), '"a"\n')
  // Nothing was written, so the same output may be named again.
  const output = join(folder, 'out.jsonl')
  t.is(run(['embed', input, '-o', output, '-m', './nowhere']).status, 1)
  t.false(existsSync(output))
})

test('--resume refuses another input, model or option than the output was begun with', (t) => {
  const folder = temporaryFolder(t)
  const [input, output] = [join(folder, 'in.jsonl'), join(folder, 'out.jsonl')]
  writeFileSync(input, '"one"\n"two"\n"three ships at sea"\n')
  t.is(run(['embed', input, '-o', output]).status, 0)
  const whole = readFileSync(output, 'utf8')
  const resume = (...args: string[]) => run(['embed', ...args, '-o', output, '--resume'])
  // Whole already: nothing to do.
  t.is(resume(input).status, 0)
  t.is(readFileSync(output, 'utf8'), whole)

  const others = {
    'other.jsonl': '"one"\n"two"\n"thirty"\n',
    'short.jsonl': '"one"\n"two"\n',
    'blank.jsonl': '"one"\n"two"\n\n"three ships at sea"\n',
  }
  for (const [name, lines] of Object.entries(others)) {
    writeFileSync(join(folder, name), lines)
    const { status, stderr } = resume(join(folder, name))
    t.is(status, 1, name)
    t.regex(
      stderr,
      /^INVALID_ARGUMENT: .*out\.jsonl ends with the vector of line 3, and .*--resume needs the input/,
    )
  }
  for (const args of [['--dimensions', '5'], ['--pooling', 'last'], ['--no-normalize']]) {
    t.regex(resume(input, ...args).stderr, /^INVALID_ARGUMENT: .*that of .*in\.jsonl is another one/, args[0])
  }
  t.is(readFileSync(output, 'utf8'), whole)

  for (const other of ['something else\n', 'something else', '\0']) {
    writeFileSync(output, other)
    t.regex(resume(input).stderr, /^INVALID_ARGUMENT: the last line of .*out\.jsonl is no record/)
    t.is(readFileSync(output, 'utf8'), other)
  }
  // Broken off at any byte, it becomes the same again.
  for (const length of [0, 1, 100, whole.indexOf('\n'), whole.indexOf('\n') + 1, whole.length - 1]) {
    writeFileSync(output, whole)
    truncateSync(output, length)
    t.is(resume(input).status, 0, String(length))
    t.deepEqual(
      records(readFileSync(output, 'utf8')).map(({ line }) => line),
      [1, 2, 3],
    )
  }
  t.false(existsSync(`${output}.new`))
})

testLinux('an input that cannot be read: one line that says so', (t) => {
  const { status, stdout, stderr } = run(['embed', '/proc/self/mem'])
  t.deepEqual([status, stdout], [1, ''])
  t.regex(stderr, /^IO_ERROR: \/proc\/self\/mem: .*EIO.*\n$/)
})

testPosix('Ctrl-C ends it with 130, whole records in the output', async (t) => {
  const folder = temporaryFolder(t)
  const [input, output] = [join(folder, 'in.jsonl'), join(folder, 'out.jsonl')]
  writeFileSync(input, shortTexts(5000))
  const program = start(['embed', input, '-o', output])
  await program.until(() => existsSync(output) && statSync(output).size > 0)
  program.child.kill('SIGINT')
  const { status, stdout, stderr } = await program.ended
  t.deepEqual([status, stdout, stderr], [130, '', ''])
  const lines = records(readFileSync(output, 'utf8'))
  t.true(lines.length < 5000)
})

/** Short texts, each another one, as JSON lines. */
function shortTexts(count: number): string {
  return Array.from(
    { length: count },
    (_, i) => `{"id":${i},"text":"The ship number ${i} left the harbour."}\n`,
  ).join('')
}

testLinux('killed again and again, it goes on without loss or repeat, in constant memory', async (t) => {
  const count = soak ? 100_000 : 5000
  const folder = temporaryFolder(t)
  const [input, output] = [join(folder, 'in.jsonl'), join(folder, 'out.jsonl')]
  writeFileSync(input, shortTexts(count))
  const args = ['embed', input, '-o', output, '--resume', '--dimensions', '32']
  const size = () => (existsSync(output) ? statSync(output).size : 0)

  let kills = 0
  /** Resident MiB of each process, at each look. */
  const memory: number[][] = []
  for (let ended = false; !ended;) {
    const program = start(args)
    const from = size()
    const seen: number[] = []
    memory.push(seen)
    // Killed in mid-work 4 times, at sizes that no batch ends at; then it may end.
    const enough = kills < 4 ? Math.max(((kills + 1) / 6) * count * 430, from + 1) : Infinity
    while (program.child.exitCode === null && size() < enough) {
      seen.push(residentMiB(program.child.pid!))
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    if (program.child.exitCode === null) {
      program.child.kill('SIGKILL')
      kills++
    }
    const { status, signal, stderr } = await program.ended
    if (signal !== 'SIGKILL') {
      t.deepEqual([status, stderr], [0, ''])
      ended = true
    }
    t.true(size() > from, `${from}, then ${size()}`)
  }
  t.is(kills, 4)

  let line = 0
  for (const text of readFileSync(output, 'utf8').trimEnd().split('\n')) {
    const record = JSON.parse(text) as Record
    line++
    if (record.line !== line || record.id !== line - 1 || record.embedding.length !== 32) return t.fail(text)
  }
  t.is(line, count)

  const last = memory.at(-1)!.filter((mib) => mib > 0)
  const [early, late] = [Math.max(...last.slice(0, last.length >> 1)), Math.max(...last)]
  t.log(
    `${count} texts, killed ${kills} times; resident MiB of the last process: ${early}, then ${late} at most`,
  )
  // A batch of records and the collector's slack; all records would be far more.
  t.true(late - early < 40, memory.map((list) => Math.max(...list)).join(' '))
})

function residentMiB(pid: number): number {
  try {
    return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) >> 10
  } catch {
    return 0
  }
}

test('standard input that comes slowly is answered in full at its end', async (t) => {
  const program = start(['embed', '--dimensions', '2'])
  for (const part of ['"a sh', 'ip"\n"a', ' boat"\n']) {
    program.child.stdin.write(part)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  program.child.stdin.end('"unended"')
  const { status, stdout } = await program.ended
  t.is(status, 0)
  t.deepEqual(
    records(stdout).map(({ line }) => line),
    [1, 2, 3],
  )
})
