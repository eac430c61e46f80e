import { binding, bindingPath } from './binding.js'

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
  devices: string[]
}

/**
 * What was loaded, and what it found on this machine.
 *
 * @throws {@link MambaError} `BINDING_NOT_FOUND`
 */
export function diagnose(): Diagnosis {
  const { simd, notes, processors, devices } = binding().diagnose()
  return {
    version: version(),
    binary: bindingPath(),
    node: process.version,
    platform: process.platform,
    arch: process.arch,
    simd,
    notes,
    processors,
    devices,
  }
}
