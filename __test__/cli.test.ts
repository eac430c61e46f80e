// The program's commands, by what they print and how they end; embed, chat and doctor have files of their own.
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { Mamba, version } from 'node-mamba'
import { run, start, startInTerminal, testInTerminal, testPosix } from './helpers/cli.js'
import { temporaryFolder } from './helpers/folder.js'
import { modelFolder, useModel } from './helpers/model.js'

const model = useModel()
/** As the tests' model, whose results are the same to the bit whatever is computed together. */
const f32 = ['--dtype', 'f32']

test('help: of the program and of each command, with examples', (t) => {
  const help = run(['--help'])
  t.is(help.status, 0)
  const commands = [...help.stdout.matchAll(/^ {2}([a-z]+) (?:\[|<)/gm)].map(([, name]) => name!)
  t.true(commands.length >= 9, help.stdout)
  for (const name of commands) {
    const { status, stdout } = run([name, '--help'])
    t.is(status, 0, name)
    t.regex(stdout, new RegExp(`^Usage: node-mamba ${name} [^]*^Examples:\n  # [^]*node-mamba ${name}`, 'm'))
  }
  t.is(run(['--version']).stdout.trim(), version())
})

test('calls that are wrong: status 2, and what was probably meant', (t) => {
  for (const [args, message] of [
    [[], /^Usage: node-mamba/],
    [['rnu'], /^error: unknown command 'rnu'\n\(Did you mean run\?\)/],
    [['toString'], /^error: unknown command 'toString'/],
    [['run', 'x', '--temprature', '1'], /unknown option '--temprature'\n\(Did you mean --temperature\?\)/],
    [['run', 'x', 'y'], /too many arguments/],
    [['run', 'x', '-t', 'warm'], /--temperature <number>' argument 'warm' is invalid. Expected a number/],
    [['run', 'x', '-n', '0'], /argument '0' is invalid. Expected a whole number from 1/],
    [['run', 'x', '-n', '1e3'], /argument '1e3' is invalid/],
    [['run', 'x', '--dtype', 'f8'], /argument 'f8' is invalid. Allowed choices are f32, bf16/],
    [['run', 'x', '--top-p', '3'], /^OPTION_INVALID: option `topP` is 3, expected a number from 0 to 1/],
    [['convert', modelFolder], /missing required argument 'folder'/],
    [['embed', '--resume'], /^error: --resume .*needs --output/],
    [['completion', 'tcsh'], /'tcsh' is invalid/],
  ] as const) {
    const { status, stdout, stderr } = run([...args])
    t.deepEqual([status, stdout], [2, ''], args.join(' '))
    t.regex(stderr, message)
  }
})

test('what fails: status 1, the code and the message on standard error', (t) => {
  const folder = temporaryFolder(t)
  writeFileSync(join(folder, 'config.json'), '{')
  writeFileSync(join(folder, 'model.safetensors'), 'no')
  for (const [args, message] of [
    [['run', 'x', '-m', './nowhere'], /^FILE_NOT_FOUND: .*nowhere/],
    [['run', 'x', '-m', 'nowhere'], /^INVALID_ARGUMENT: the model 'nowhere' is none of the forms/],
    [['run', 'x', '-m', folder], /^CONFIG_INVALID: /],
    [['run', ''], /^EMPTY_PROMPT: /],
    [['run', 'x', '--session', join(folder, 'model.safetensors')], /^SESSION_INVALID: /],
    [['run', 'x', '--session', join(folder, 'none', 'x')], /^FILE_NOT_FOUND: /],
    [['score', ''], /^EMPTY_PROMPT: /],
    [['convert', './nowhere', folder], /^FILE_NOT_FOUND: /],
    [['inspect', './nowhere'], /^FILE_NOT_FOUND: .*nowhere/],
    [['inspect', folder], /^CONFIG_INVALID: .*config\.json is not JSON/],
    [['chat', '--session', folder], /^(IO_ERROR|SESSION_INVALID): /],
  ] as const) {
    const { status, stdout, stderr } = run([...args], { input: 'Hello\n' })
    t.is(status, 1, args.join(' '))
    t.regex(stderr, message, args.join(' '))
    t.notRegex(stderr, /\n {4}at /, 'no stack trace')
    t.is(stdout.trim(), '')
  }
})

test('run prints what the library completes: from an argument, from standard input, with options, as JSON', async (t) => {
  const prompt = 'It was a dark and stormy night'
  const greedy = await model().complete(prompt, { maxTokens: 20 })
  t.deepEqual(run(['run', prompt, '-n', '20', ...f32]), { status: 0, stdout: `${greedy.text}\n`, stderr: '' })
  t.is(run(['run', '-n', '20', ...f32], { input: prompt }).stdout, `${greedy.text}\n`)
  t.is(run(['run', '-', '-n', '20', ...f32], { input: prompt }).stdout, `${greedy.text}\n`)

  const options = {
    maxTokens: 30,
    temperature: 0.9,
    topK: 50,
    topP: 0.95,
    minP: 0.01,
    seed: 7,
    stop: [',', '.'],
  }
  const drawn = await model().complete(prompt, {
    ...options,
    repetitionPenalty: 1.1,
    frequencyPenalty: 0.1,
    presencePenalty: 0.2,
  })
  const penalties = ['--repetition-penalty=1.1', '--frequency-penalty=0.1', '--presence-penalty=0.2']
  const flags = [...f32, '-n', '30', '-t', '0.9', '--top-k=50', '--top-p=0.95', '--min-p=0.01', '--seed=7']
  const { status, stdout } = run([
    'run',
    prompt,
    ...flags,
    ...penalties,
    '--stop',
    ',',
    '--stop',
    '.',
    '--json',
  ])
  t.is(status, 0)
  const { text, tokens, finishReason, usage } = JSON.parse(stdout) as typeof drawn
  t.deepEqual([text, [...tokens], finishReason], [drawn.text, [...drawn.tokens], drawn.finishReason])
  t.is(usage.promptTokens, drawn.usage.promptTokens)
})

test('run --session goes on where the last call ended, without a prompt too', async (t) => {
  const file = join(temporaryFolder(t), 'story.session')
  const args = ['run', ...f32, '-n', '8', '--session', file]
  const told = [
    run([...args, 'Once upon a time'], {}),
    run([...args, ' Then']),
    run([...args, '--json'], { input: '' }),
  ]
  t.deepEqual(
    told.map(({ status }) => status),
    [0, 0, 0],
  )
  const session = model().session()
  const expected: string[] = []
  for (const prompt of ['Once upon a time', ' Then', '']) {
    if (prompt) await session.append(prompt)
    expected.push((await session.generate({ maxTokens: 8 }).result).text)
  }
  const last = JSON.parse(told[2]!.stdout) as { text: string; session: object }
  t.deepEqual(
    [told[0]!.stdout, told[1]!.stdout, last.text],
    [`${expected[0]}\n`, `${expected[1]}\n`, expected[2]],
  )
  t.deepEqual(last.session, { file, tokens: session.tokens, bytes: session.byteLength })
})

test('score', async (t) => {
  const text = 'She looked out of the window.'
  const { tokens, logprobs, meanNll, perplexity } = await model().score(text)
  const plain = run(['score', text, ...f32])
  t.is(plain.status, 0)
  t.regex(
    plain.stdout,
    new RegExp(`^perplexity +${perplexity.toFixed(2)}\nnats a token +${meanNll.toFixed(4)}\n`),
  )
  const found = JSON.parse(run(['score', '--json', ...f32], { input: text }).stdout) as {
    meanNll: number
    tokens: { id: number; text: string; logprob: number | null }[]
  }
  t.is(found.meanNll, meanNll)
  t.deepEqual(
    found.tokens.map(({ id, logprob }) => [id, logprob]),
    Array.from(tokens, (id, i) => [id, i === 0 ? null : logprobs[i - 1]!]),
  )
  t.is(found.tokens.map((token) => token.text).join(''), text)
})

test('convert writes a checkpoint that loads, and says what it wrote', async (t) => {
  const folder = join(temporaryFolder(t), 'quantized')
  const { status, stdout, stderr } = run(['convert', 'default', folder, '--dtype', 'q8_0', '--json'])
  t.deepEqual([status, stderr], [0, ''])
  const file = join(folder, 'model.safetensors')
  t.deepEqual(JSON.parse(stdout), { folder, file, bytes: readFileSync(file).length })
  const quantized = await Mamba.load(folder)
  t.is(quantized.dtype, 'q8_0')
  await quantized.dispose()
  t.is(run(['run', 'It', '-n', '1', '-m', folder]).status, 0)
  // Its blocks are bytes, so there is no counting them.
  const report = JSON.parse(run(['inspect', folder, '--json']).stdout) as {
    parameters?: number
    tensors: object[]
  }
  t.deepEqual([report.parameters, report.tensors.length > 100], [undefined, true])
})

test('inspect: a checkpoint by folder, by file and in shards', (t) => {
  interface Report {
    kind: string
    config: { d_model: number }
    files: { file: string; bytes: number }[]
    tensors: { name: string; dtype: string; shape: number[]; bytes: number }[]
    parameters: number
    tokenizer: boolean
  }
  const { status, stdout } = run(['inspect'])
  t.is(status, 0)
  t.regex(stdout, /^parameters +7,353,600$/m)
  t.regex(stdout, /^d_model +256$/m)
  t.regex(stdout, /^backbone\.layers\.\*\.mixer\.A_log +F32 +\[512, 16\] +× 12 +393\.2 kB$/m)

  const report = JSON.parse(run(['inspect', '--json']).stdout) as Report
  t.deepEqual(
    [report.kind, report.config.d_model, report.parameters, report.tokenizer],
    ['model', 256, model().parameters, true],
  )
  const file = join(modelFolder, 'model.safetensors')
  t.deepEqual(report.files, [{ file, bytes: readFileSync(file).length }])
  const norm = report.tensors.find(({ name }) => name === 'backbone.norm_f.weight')
  t.deepEqual(norm, { name: 'backbone.norm_f.weight', dtype: 'F32', shape: [256], bytes: 1024 })
  t.deepEqual(JSON.parse(run(['inspect', file, '--json']).stdout), report)

  const folder = temporaryFolder(t)
  copyFileSync(join(modelFolder, 'config.json'), join(folder, 'config.json'))
  copyFileSync(file, join(folder, 'one.safetensors'))
  const map = Object.fromEntries(report.tensors.map(({ name }) => [name, 'one.safetensors']))
  writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }))
  const sharded = JSON.parse(run(['inspect', folder, '--json']).stdout) as Report
  t.deepEqual([sharded.parameters, sharded.tokenizer], [model().parameters, false])
})

test('inspect: weights that are damaged, or a pickle', (t) => {
  const folder = temporaryFolder(t)
  copyFileSync(join(modelFolder, 'config.json'), join(folder, 'config.json'))
  const none = run(['inspect', folder])
  t.is(none.status, 1)
  t.regex(none.stderr, /^FILE_NOT_FOUND: .* holds none of model\.safetensors, /)
  writeFileSync(join(folder, 'pytorch_model.bin'), 'anything')
  const pickle = run(['inspect', folder])
  t.is(pickle.status, 0)
  t.regex(pickle.stdout, /the tensors of a pickle are not listed/)
  const weights = join(folder, 'model.safetensors')
  for (const damage of [
    () => writeFileSync(weights, ''),
    () => writeFileSync(weights, Buffer.alloc(100, 0xff)),
    () => writeFileSync(weights, Buffer.concat([Buffer.from([3, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{"a')])),
    () =>
      writeFileSync(weights, Buffer.concat([Buffer.from([8, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{"a":{}}')])),
  ]) {
    damage()
    const { status, stderr } = run(['inspect', folder])
    t.is(status, 1)
    t.regex(stderr, /^CHECKPOINT_INVALID: .*model\.safetensors/)
  }
})

test('inspect: a session', async (t) => {
  const folder = temporaryFolder(t)
  const file = join(folder, 'a.session')
  const session = model().session()
  await session.append('It was a dark night')
  await session.save(file)
  const { status, stdout } = run(['inspect', 'a.session', '--json'], { cwd: folder })
  t.is(status, 0)
  const { seed: _seed, ...report } = JSON.parse(stdout) as Record<string, unknown>
  t.deepEqual(report, {
    kind: 'session',
    format: 'node-mamba-session/1',
    bytes: session.byteLength,
    tokens: session.tokens,
    fingerprint: model().fingerprint,
    dtype: 'f32',
    device: 'cpu',
  })
  t.regex(run(['inspect', file]).stdout, new RegExp(`^tokens +${session.tokens}$`, 'm'))
  const whole = readFileSync(file)
  writeFileSync(file, whole.toString('latin1').replace('"tokens"', '"takens"'), 'latin1')
  t.regex(run(['inspect', file]).stderr, /^SESSION_INVALID: .*without tokens/)
  writeFileSync(file, whole)
  truncateSync(file, 100)
  t.regex(run(['inspect', file]).stderr, /^SESSION_INVALID: .*cut short/)
  writeFileSync(file, 'node-mamba-session/2\n…')
  t.regex(
    run(['inspect', file]).stderr,
    /^SESSION_VERSION: .*'node-mamba-session\/2', expected 'node-mamba-session\/1'/,
  )
})

test('bench measures, in words and as JSON', (t) => {
  const sizes = ['--prompt', '32', '--tokens', '4', '--batch', '2', '--rounds', '3']
  const { status, stdout, stderr } = run(['bench', ...sizes, '--threads', '1', '--dtype', 'f32'])
  t.deepEqual([status, stderr], [0, ''])
  t.regex(stdout, /^default, 7,353,600 parameters, f32 on cpu, 1 threads, /)
  t.regex(stdout, /^prefill of 32 tokens +[\d,]+ +\([\d,]+ to [\d,]+\)$/m)
  const found = JSON.parse(run(['bench', ...sizes, '--json']).stdout) as {
    machine: { version: string }
    settings: object
    tokensPerSecond: Record<string, { median: number; min: number; max: number }>
  }
  t.is(found.machine.version, version())
  t.deepEqual(found.settings, { prompt: 32, tokens: 4, batch: 2, embedTokens: 64, rounds: 3 })
  t.deepEqual(Object.keys(found.tokensPerSecond), ['prefill', 'decode', 'decodeBatch', 'embed'])
  for (const { min, median, max } of Object.values(found.tokensPerSecond)) {
    t.true(min > 0 && min <= median && median <= max)
  }
})

test('completion: what the shells ask for, and their scripts', (t) => {
  const complete = (...words: string[]) => run(['complete', '--', ...words]).stdout
  t.regex(complete('r'), /^run\t/m)
  t.regex(complete('run', '--te'), /^--temperature\t/m)
  t.regex(complete('run', '--dtype', ''), /^q8_0/m)
  t.regex(complete('completion', ''), /^fish/m)
  const folder = temporaryFolder(t)
  for (const shell of ['bash', 'zsh', 'fish']) {
    const { status, stdout } = run(['completion', shell])
    t.is(status, 0)
    t.regex(stdout, /node-mamba complete --/)
    // Where the shell is installed, it must take the script.
    const file = join(folder, shell)
    writeFileSync(file, stdout)
    const checked = spawnSync(shell, ['-n', file], { encoding: 'utf8' })
    if (!checked.error) t.deepEqual([checked.status, checked.stderr], [0, ''], shell)
  }
})

testPosix('completion works in bash', (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'bin'))
  const node = process.execPath
  const main = new URL('../dist/lib/cli/main.js', import.meta.url).pathname
  writeFileSync(join(folder, 'bin/node-mamba'), `#!/bin/sh\nexec '${node}' '${main}' "$@"\n`, { mode: 0o755 })
  const script = `
    # Of the package bash-completion, which the script needs.
    _get_comp_words_by_ref() { words=("\${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=\${words[cword]}; }
    source <(node-mamba completion bash)
    COMP_WORDS=(node-mamba run --dev); COMP_CWORD=2; COMP_LINE='node-mamba run --dev'; COMP_POINT=\${#COMP_LINE}
    $(complete -p node-mamba | sed 's/.*-F \\([^ ]*\\).*/\\1/') node-mamba --dev run
    printf '%s\\n' "\${COMPREPLY[@]}"`
  const { stdout, stderr } = spawnSync('bash', ['--norc', '-c', script], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', PATH: `${folder}/bin:${process.env.PATH}` },
  })
  t.regex(stdout, /^--device/, stderr)
})

testPosix(
  'Ctrl-C ends a run with 130, and SIGTERM with 143; what was said by then is in the session',
  async (t) => {
    const folder = temporaryFolder(t)
    for (const [signal, expected] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
    ] as const) {
      const file = join(folder, signal)
      const program = start(['run', 'It was', '-n', '100000', '--session', file])
      await program.until((out) => out.length > 200)
      program.child.kill(signal)
      const { status, stdout, stderr } = await program.ended
      t.deepEqual([status, stderr], [expected, ''])
      const session = await model().restore(file)
      const said = model().tokenizer.encode(`It was${stdout.trimEnd()}`)
      t.true(Math.abs(session.tokens - said.length) < 20, `${session.tokens} of ${said.length}`)
      t.true(stdout.endsWith('\n'))
    }
  },
)

/** Rejects after so many milliseconds. */
function timeout(milliseconds: number, what: string): Promise<never> {
  return new Promise((_, reject) =>
    setTimeout(() => reject(new Error(`${what} goes on`)), milliseconds).unref(),
  )
}

testPosix('Ctrl-C while it waits for standard input', async (t) => {
  for (const command of ['score', 'run', 'embed', 'chat']) {
    const program = start([command])
    // More than a pipe holds: when it is written, the program reads.
    await new Promise((resolve) => program.child.stdin.write(`"half${' '.repeat(4 << 20)}`, resolve))
    program.child.kill('SIGINT')
    const ended = program.ended.then(({ status, stdout, stderr }) => [status, stdout, stderr])
    t.deepEqual(await Promise.race([ended, timeout(20_000, command)]), [130, '', ''], command)
  }
})

testPosix('a reader that has gone ends it quietly', async (t) => {
  const program = start(['run', 'It was', '-n', '100000'])
  await program.until((out) => out.length > 100)
  program.child.stdout.destroy()
  const { status, stderr } = await program.ended
  t.deepEqual([status, stderr], [141, ''])
})

testInTerminal('colours and progress: in a terminal only, and not with NO_COLOR', async (t) => {
  const wrong = ['run', 'x', '-m', './nowhere']
  t.true((await startInTerminal(wrong).ended).stdout.startsWith('\x1b[31mFILE_NOT_FOUND\x1b[39m: '))
  t.true((await startInTerminal(wrong, { NO_COLOR: '1' }).ended).stdout.startsWith('FILE_NOT_FOUND: '))
  t.true(run(wrong).stderr.startsWith('FILE_NOT_FOUND: '))

  const bench = ['bench', '--prompt', '512', '--tokens', '16', '--rounds', '5']
  const shown = (await startInTerminal(bench).ended).stdout
  t.regex(shown, /measuring .*█+.*░+ +\d+ % decode/)
  t.true(shown.includes('\r\x1b[Kdefault, '), 'the bar has gone before the result')
})
