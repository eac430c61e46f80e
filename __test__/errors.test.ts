import { readdirSync, readFileSync } from 'node:fs'
import test from 'ava'
import { MambaError } from 'node-mamba'

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8')

/** The codes between quotes in the sources of the TypeScript side. */
const quoted = () =>
  readdirSync(new URL('../lib', import.meta.url), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts') && !['errors.ts', 'native.d.ts'].includes(file))
    .flatMap((file) => [...read(`lib/${file}`).matchAll(/'([A-Z]+(?:_[A-Z]+)*)'/g)])
    .map((match) => match[1]!)

test('MambaErrorCode names exactly the codes of error.rs, probe.rs and the TypeScript side', (t) => {
  const code = read('crates/mamba/src/error.rs').match(/fn code\(&self\)[^{]*\{([\s\S]*?)\n    \}/)?.[1] ?? ''
  const rust = [...code.matchAll(/=> "([A-Z_]+)"/g)].map((match) => match[1]!)
  const probe = [...read('crates/mamba-node/src/probe.rs').matchAll(/"(CUDA_[A-Z_]+)"/g)]
    .map((match) => match[1]!)
    .filter((name) => name !== 'CUDA_VISIBLE_DEVICES')
  const union = read('lib/errors.ts').match(/type MambaErrorCode =([\s\S]*?)\n\n/)?.[1] ?? ''
  const typescript = [...union.matchAll(/\| '([A-Z_]+)'/g)].map((match) => match[1]!)
  t.true(rust.length > 20)
  t.true(probe.length >= 7)
  // tsc sees to it that the TypeScript side throws no other ones.
  const thrown = new Set([...rust, ...probe, ...quoted().filter((name) => typescript.includes(name))])
  t.deepEqual(typescript.toSorted(), [...thrown].toSorted())
  t.is(union.split('/**').length - 1, typescript.length, 'each code has a description')
})

test('a MambaError has a code, a cause and a name', (t) => {
  const cause = new Error('underneath')
  const error = new MambaError('IO_ERROR', 'cannot read x', { cause })
  t.true(error instanceof Error)
  t.is(error.name, 'MambaError')
  t.is(error.code, 'IO_ERROR')
  t.is(error.cause, cause)
})
