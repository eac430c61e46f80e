import { existsSync, readdirSync, realpathSync } from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import type { NativeLibraryPlace } from './native.js'

/**
 * Where the CUDA libraries may be, best first: the folder that `NODE_MAMBA_CUDA_PATH` names (when it is set nothing
 * else is tried), the toolkit of `CUDA_HOME` or `CUDA_PATH`, wherever the dynamic loader looks by itself
 * (`LD_LIBRARY_PATH`, ldconfig), /usr/local/cuda, and the site-packages folders where pip puts NVIDIA's wheels.
 */
export function libraryPlaces(): NativeLibraryPlace[] {
  const { NODE_MAMBA_CUDA_PATH: chosen, CUDA_HOME, CUDA_PATH } = process.env
  if (chosen) return inToolkit('NODE_MAMBA_CUDA_PATH', chosen, ['', 'lib64', 'lib'])
  return [
    ...(CUDA_HOME ? inToolkit('CUDA_HOME', CUDA_HOME) : []),
    ...(CUDA_PATH ? inToolkit('CUDA_PATH', CUDA_PATH) : []),
    { source: "the dynamic loader's search" },
    { source: 'the usual folder', folder: '/usr/local/cuda/lib64' },
    ...sitePackages()
      .map((folder) => ({ source: 'pip', folder: join(folder, 'nvidia/cu13/lib') }))
      .filter(({ folder }) => existsSync(folder)),
  ]
}

function inToolkit(source: string, folder: string, parts = ['lib64', 'lib']): NativeLibraryPlace[] {
  return parts.map((part) => ({ source, folder: join(folder, part) }))
}

/**
 * The site-packages folders of the active environment, of the python3 on PATH, of the user and of the system. They are
 * guessed from where python3 lies; it is not run, since what else that starts is its owner's affair.
 */
function sitePackages(): string[] {
  const { VIRTUAL_ENV, CONDA_PREFIX, PATH = '' } = process.env
  const python = PATH.split(delimiter)
    .map((folder) => join(folder, 'python3'))
    .find((file) => existsSync(file))
  const prefixes = [
    VIRTUAL_ENV,
    CONDA_PREFIX,
    // As it was called (a virtual environment's is a link to another), and where it really is.
    ...(python ? [python, realpathSync(python)].map((file) => dirname(dirname(file))) : []),
    join(homedir(), '.local'),
    '/usr/local',
    '/usr',
  ]
  const folders = prefixes
    .filter((prefix) => prefix !== undefined)
    .flatMap((prefix) =>
      entries(join(prefix, 'lib'))
        .filter((name) => name.startsWith('python3'))
        .flatMap((name) =>
          ['site-packages', 'dist-packages'].map((packages) => join(prefix, 'lib', name, packages)),
        ),
    )
  return [...new Set(folders)]
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
