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
  const { simd, processors, devices } = binding().diagnose()
  return {
    version: version(),
    binary: bindingPath(),
    node: process.version,
    platform: process.platform,
    arch: process.arch,
    simd,
    processors,
    devices,
  }
}
