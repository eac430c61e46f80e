import { binding } from './binding.js'

/** What runs here; worth pasting into a bug report. */
export interface Diagnosis {
  /** Of node-mamba (its native binary, which is equal to the package's). */
  version: string
  /** The native binary that was loaded. */
  binary: string
  /** Node's version and platform. */
  node: string
  platform: string
  arch: string
  /** The vector instructions that the kernels use on this processor. */
  simd: string
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
  const native = binding()
  const { simd, processors, devices } = native.diagnose()
  return {
    version: native.version(),
    binary: loadedBinary(),
    node: process.version,
    platform: process.platform,
    arch: process.arch,
    simd,
    processors,
    devices,
  }
}

/** Node keeps what `require` loaded by its path. */
function loadedBinary(): string {
  return 'x'
}
