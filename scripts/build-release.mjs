// npm run build:release [-- <Rust target>]: the binary as it is published, in npm/<platform>/.
// On Linux, zig links it against glibc 2.28, so that it loads on distributions of 2018 and later. zig and
// cargo-zigbuild are Python wheels, so this command alone needs python3 with pip.
import { copyFileSync, existsSync } from 'node:fs'
import { ask, fail, root, run, step } from './steps.mjs'

const glibc = '2.28'
const wheels = ['ziglang==0.15.2', 'cargo-zigbuild==0.24.0']
const platforms = {
  'x86_64-unknown-linux-gnu': 'linux-x64-gnu',
  'aarch64-unknown-linux-gnu': 'linux-arm64-gnu',
  'x86_64-unknown-linux-musl': 'linux-x64-musl',
  'aarch64-unknown-linux-musl': 'linux-arm64-musl',
  'x86_64-apple-darwin': 'darwin-x64',
  'aarch64-apple-darwin': 'darwin-arm64',
  'x86_64-pc-windows-msvc': 'win32-x64-msvc',
}

const target = process.argv[2] ?? ask('rustc', '-vV')?.match(/host: (.+)/)?.[1]
const platform = platforms[target]
if (!platform) fail(`target ${target} is not published, expected one of ${Object.keys(platforms).join(', ')}`)

const cargoArgs = ['--release', '--locked', '-p', 'mamba-node', '--target']
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
      {
        env: { CARGO_ZIGBUILD_ZIG_PATH: `${zig}/ziglang/zig` },
      },
    ),
  )
} else {
  step(`Building for ${target}`, () => run('cargo', ['build', ...cargoArgs, target]))
}

const library = target.includes('windows')
  ? 'mamba_node.dll'
  : `libmamba_node.${target.includes('apple') ? 'dylib' : 'so'}`
const file = `npm/${platform}/node-mamba.${platform}.node`
copyFileSync(`target/${target}/release/${library}`, file)
console.log(file)
