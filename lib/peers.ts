import { isInstalled } from './binding.js'
import { MambaError } from './errors.js'

/**
 * Checks that the optional packages of a feature are there, before anything of them is imported.
 *
 * @throws {@link MambaError} `PEER_MISSING`, with the command that installs them
 */
export function needPeers(feature: string, names: readonly string[]): void {
  const missing = names.filter((name) => !isInstalled(name))
  if (missing.length === 0) return
  throw new MambaError(
    'PEER_MISSING',
    `${feature} needs ${missing.join(', ')}, expected to be installed beside node-mamba; install with: ` +
      `npm install ${missing.join(' ')}`,
  )
}
