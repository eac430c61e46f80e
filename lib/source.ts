import { createRequire } from 'node:module'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MambaError } from './errors.js'
import { hubId, resolveHub } from './hub.js'
import { shown } from './options.js'

/** The models that are npm packages. */
const packages: Record<string, string> = {
  default: '@node-mamba/model-default',
  'default-embedder': '@node-mamba/model-default-embedder',
}

/**
 * Where the model that `source` names is on this machine.
 *
 * Only what begins with `./`, `../`, `/`, `file:` (or a Windows drive) is a path, so that a mistyped folder
 * is never taken for a model of the hub.
 */
export function resolveSource(source: string | URL): string {
  if (source instanceof URL) return filePath(source)
  if (typeof source !== 'string') throw unknown(source)
  if (Object.hasOwn(packages, source)) return installed(packages[source]!)
  if (source.startsWith('file:')) return filePath(source)
  if (/^(\.{0,2}[\\/]|[A-Za-z]:[\\/])/.test(source)) return resolve(source)
  if (hubId.test(source)) return resolveHub(source)
  throw unknown(source)
}

/** The path of a `file:` URL. */
export function filePath(url: string | URL): string {
  try {
    return fileURLToPath(url)
  } catch (cause) {
    throw new MambaError('INVALID_ARGUMENT', `${String(url)} is not the URL of a file, expected file:///…`, {
      cause,
    })
  }
}

/** A path that is text or a `file:` URL. */
export function toPath(file: string | URL): string {
  if (file instanceof URL) return filePath(file)
  if (typeof file === 'string') return file
  throw new MambaError('INVALID_ARGUMENT', `the file is ${shown(file)}, expected a path or a file: URL`)
}

function installed(name: string): string {
  try {
    return dirname(createRequire(import.meta.url).resolve(`${name}/package.json`))
  } catch (cause) {
    throw new MambaError(
      'MODEL_NOT_INSTALLED',
      `the package ${name} is not installed; install it with: npm install ${name}`,
      { cause },
    )
  }
}

function unknown(source: unknown): MambaError {
  return new MambaError(
    'INVALID_ARGUMENT',
    `the model ${shown(source)} is none of the forms that are known, expected 'default', 'default-embedder', ` +
      `a path that begins with './', '../', '/' or 'file:' (a folder or a weights file), or 'owner/name'`,
  )
}
