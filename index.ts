import { binding } from './lib/binding.js'

export { MambaError, type MambaErrorCode } from './lib/errors.js'

/** The version of the native binary, equal to the package's. */
export function version(): string {
  return binding().version()
}
