import { binding, bindingPath } from './binding.js'
import { diagnoseCuda, type CudaDiagnosis } from './cuda.js'
import type { Device } from './model.js'

/** The version of the native binary, equal to the package's. */
export function version(): string {
  return binding().version()
}

/** What runs here; worth pasting into a bug report. */
export interface Diagnosis {
  /** See {@link version}. */
  version: string
  /** The native binary that was loaded. */
  binary: string
  /** Node's version and platform. */
  node: string
  platform: string
  arch: string
  /**
   * The vector instructions that the kernels use on this processor: `portable`, `avx2`, `avx_vnni`, `avx512`,
   * `avx512_vnni` or `amx`. The environment variable `NODE_MAMBA_CPU` set to one of them allows no better ones.
   */
  simd: string
  /** Why they are not better ones, if there is a reason that someone might change. */
  notes: string[]
  /** Processors that the process may use. */
  processors: number
  /** What the option `device` may be, besides `auto`. */
  devices: Device[]
  /** Whether there is a GPU to use, and if not, what does not hold and what to do. */
  cuda: CudaDiagnosis
}

/**
 * What was loaded, and what it found on this machine. What keeps a GPU from being used is part of the answer, no
 * error. Where there is NVIDIA's driver, the call starts it, which takes some tenths of a second.
 *
 * @throws {@link MambaError} `BINDING_NOT_FOUND`
 */
export function diagnose(): Diagnosis {
  const { simd, notes, processors } = binding().diagnose()
  const cuda = diagnoseCuda()
  return {
    version: version(),
    binary: bindingPath(),
    node: process.version,
    platform: process.platform,
    arch: process.arch,
    simd,
    notes,
    processors,
    devices: cuda.available ? ['cpu', 'cuda'] : ['cpu'],
    cuda,
  }
}
