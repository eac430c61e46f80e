import { resolve } from 'node:path'
import { binding, isInstalled, loadFirst, localBuilds, type Addon, type Binding } from './binding.js'
import { direct, toMambaError } from './call.js'
import { libraryPlaces } from './cuda-libraries.js'
import { MambaError, type MambaErrorCode } from './errors.js'
import type { NativeCudaProbe } from './native.js'

/** What was found of what a GPU needs, in the order in which it is looked for. */
export interface CudaDiagnosis {
  /** Whether `device: 'cuda'` works, and `'auto'` uses it. */
  available: boolean
  /** What does not hold, where something does not: one of the codes that begin with `CUDA_`. */
  code?: MambaErrorCode
  /** The same in words: what was found, what was expected and what to do. */
  reason?: string
  /** NVIDIA's driver, such as `580.82.07 (CUDA 13.0)`. */
  driver?: string
  /** The GPU that is used: the first that the driver shows. */
  device?: { name: string; computeCapability: string; memoryBytes: number }
  /** The files of the CUDA libraries. */
  libraries: string[]
  /** The addon of the CUDA build, or the package's module that loads it. */
  binary?: string
}

/** A driver that takes longer does not work. Several GPUs without the persistence daemon take some seconds. */
const timeout = 30_000

let loaded: Promise<Addon> | undefined

/**
 * The addon that a model with this `device` is to be loaded by: for `cuda` the CUDA build, for `auto` that one where
 * everything that it needs is there. Where its package is not installed, `auto` looks at nothing else.
 *
 * @throws {@link MambaError} `BINDING_NOT_FOUND`; for `cuda` the codes that begin with `CUDA_`
 */
export async function bindingFor(device: string | undefined): Promise<Binding> {
  if (device === 'cuda') return (await cudaAddon()).exports
  if ((device ?? 'auto') !== 'auto' || !candidates().some(isInstalled)) return binding()
  try {
    return (await cudaAddon()).exports
  } catch (error) {
    if (error instanceof MambaError && error.code.startsWith('CUDA_')) return binding()
    throw error
  }
}

/** The CUDA build, once everything that it needs is there; looked for until it was found once. */
async function cudaAddon(): Promise<Addon> {
  loaded ??= probe().then(loadAddon)
  try {
    return await loaded
  } catch (error) {
    loaded = undefined
    throw error
  }
}

async function probe(): Promise<void> {
  const { probeCuda } = binding()
  const found = await new Promise<NativeCudaProbe>((resolve, reject) => {
    direct(() =>
      probeCuda(libraryPlaces(), timeout, (error, value) =>
        error ? reject(toMambaError(error)) : resolve(value),
      ),
    )
  })
  if (found.code) throw new MambaError(found.code as MambaErrorCode, found.reason!)
}

/** Everything that `device: 'cuda'` needs; blocks for as long as the driver takes to start, at most `timeout`. */
export function diagnoseCuda(): CudaDiagnosis {
  const { code, reason, driver, device, libraries } = direct(() =>
    binding().probeCudaSync(libraryPlaces(), timeout),
  )
  const found = { ...(driver && { driver }), ...(device && { device }), libraries }
  if (code) return { available: false, code: code as MambaErrorCode, reason: reason!, ...found }
  try {
    return { available: true, ...found, binary: loadAddon().path }
  } catch (error) {
    const { code, message } = error as MambaError
    return { available: false, code, reason: message, ...found }
  }
}

/** Where the CUDA build is looked for: as `binding` does, with variables and packages of its own. */
function candidates(): string[] {
  const chosen = process.env.NODE_MAMBA_CUDA_BINARY
  if (chosen) return [resolve(chosen)]
  return [...localBuilds('npm-cuda/linux-x64-gnu/node-mamba-cuda.linux-x64-gnu.node'), '@node-mamba/cuda']
}

/** Only after a probe: it has loaded the libraries that the addon looks for by their names. */
function loadAddon(): Addon {
  const advice = process.env.NODE_MAMBA_CUDA_BINARY
    ? 'NODE_MAMBA_CUDA_BINARY is set, so nothing else was tried.'
    : 'Install it with: npm install @node-mamba/cuda'
  const addon = loadFirst(
    candidates(),
    'CUDA_PACKAGE_MISSING',
    `the CUDA build of node-mamba could not be loaded. ${advice}`,
  )
  const { version } = addon.exports as Partial<Binding>
  const [found, expected] = [version?.() ?? 'none', binding().version()]
  if (found !== expected) {
    throw new MambaError(
      'CUDA_PACKAGE_VERSION',
      `${addon.path} is of version ${found}, expected ${expected}; ` +
        `install it with: npm install @node-mamba/cuda@${expected}`,
    )
  }
  return addon
}
