import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MambaError, type MambaErrorCode } from './errors.js'

/** What a native addon exports. */
export type Binding = typeof import('./native.js')

/** A native addon and its file. */
export interface Addon {
  exports: Binding
  path: string
}

const require = createRequire(import.meta.url)
let loaded: Addon | undefined

/**
 * The CPU's native addon, loaded at the first call. It is looked for in this order:
 * `NODE_MAMBA_BINARY` (a path; when it is set nothing else is tried), a build in the package's own folder,
 * the platform package `@node-mamba/<triple>` that npm installed as an optional dependency.
 *
 * @throws {@link MambaError} `BINDING_NOT_FOUND`, with what was tried and why each failed; its `cause` is an
 * `AggregateError` of the reasons.
 */
export function binding(): Binding {
  return (loaded ??= load()).exports
}

/** The file of {@link binding}. */
export function bindingPath(): string {
  return (loaded ??= load()).path
}

function load(): Addon {
  const triple = platformTriple()
  const chosen = process.env.NODE_MAMBA_BINARY
  const candidates = chosen
    ? [resolve(chosen)]
    : [...localBuilds(`node-mamba.${triple}.node`), `@node-mamba/${triple}`]
  const advice = chosen
    ? 'NODE_MAMBA_BINARY is set, so nothing else was tried.'
    : `Was node-mamba installed with its optional dependencies, and on this platform (${triple})?`
  return loadFirst(candidates, 'BINDING_NOT_FOUND', `no native binary could be loaded. ${advice}`)
}

/**
 * The first of the candidates (paths or packages) that loads.
 *
 * @throws {@link MambaError} `code`, with `message`, what was tried and why each failed.
 */
export function loadFirst(candidates: string[], code: MambaErrorCode, message: string): Addon {
  const failures: { candidate: string; error: Error }[] = []
  for (const candidate of candidates) {
    try {
      return { exports: require(candidate) as Binding, path: require.resolve(candidate) }
    } catch (error) {
      failures.push({ candidate, error: error as Error })
    }
  }
  // Node's own message goes on with a "Require stack" of several lines, which helps nobody here.
  const reasons = failures.map(
    ({ candidate, error }) => `\n- ${candidate}: ${error.message.split('\nRequire stack')[0]}`,
  )
  throw new MambaError(code, `${message} Tried:${reasons.join('')}`, {
    cause: new AggregateError(failures.map(({ error }) => error)),
  })
}

/** Whether a path or a package is there; nothing of it is loaded. */
export function isInstalled(candidate: string): boolean {
  try {
    require.resolve(candidate)
    return true
  } catch {
    return false
  }
}

/** napi-rs's name of this platform: `linux-x64-gnu`, `darwin-arm64`, … */
function platformTriple(): string {
  const { platform, arch } = process
  if (platform === 'linux') return `linux-${arch}-${usesMusl() ? 'musl' : 'gnu'}`
  return platform === 'win32' ? `win32-${arch}-msvc` : `${platform}-${arch}`
}

function usesMusl(): boolean {
  // ldd is a script or a program that names the C library; reading it is quicker than a report.
  try {
    return readFileSync('/usr/bin/ldd', 'latin1').includes('musl')
  } catch {
    // Without this a report looks up the names of all open connections first.
    const report = process.report as NodeJS.ProcessReport & { excludeNetwork?: boolean }
    report.excludeNetwork = true
    return !('glibcVersionRuntime' in (report.getReport() as { header: object }).header)
  }
}

/** A build in the package's folder, which is one level up from lib/ and two from dist/lib/. */
export function localBuilds(name: string): string[] {
  const root = ['../', '../../']
    .map((up) => new URL(up, import.meta.url))
    .find((folder) => existsSync(new URL('package.json', folder)))
  return root ? [fileURLToPath(new URL(name, root))] : []
}
