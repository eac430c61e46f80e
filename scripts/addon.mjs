// The native addon as it is published. On Linux, zig links it against glibc 2.28, so that it loads on distributions
// of 2018 and later. zig and cargo-zigbuild are Python wheels, so this needs python3 with pip.
import { existsSync } from 'node:fs'
import { root, run, step } from './steps.mjs'

const glibc = '2.28'
const wheels = ['ziglang==0.15.2', 'cargo-zigbuild==0.24.0']

/** Builds mamba-node for a Rust target; the path of the library. `env` and `args` are cargo's. */
export function buildAddon(target, { args = [], env = {} } = {}) {
  const cargoArgs = [...args, '--release', '--locked', '-p', 'mamba-node', '--target']
  if (target.includes('linux')) {
    const zig = `${root}/.cache/zig/${wheels.join('-')}`
    if (!existsSync(zig))
      step('Fetching zig', () =>
        run('python3', ['-m', 'pip', 'install', '--quiet', `--target=${zig}`, ...wheels]),
      )
    step(`Building for ${target}, glibc ${glibc}`, () =>
      run(
        `${zig}/bin/cargo-zigbuild`,
        ['zigbuild', ...cargoArgs, target.endsWith('gnu') ? `${target}.${glibc}` : target],
        { env: { ...env, CARGO_ZIGBUILD_ZIG_PATH: `${zig}/ziglang/zig` } },
      ),
    )
  } else {
    step(`Building for ${target}`, () => run('cargo', ['build', ...cargoArgs, target], { env }))
  }
  const library = target.includes('windows')
    ? 'mamba_node.dll'
    : `libmamba_node.${target.includes('apple') ? 'dylib' : 'so'}`
  return `target/${target}/release/${library}`
}
