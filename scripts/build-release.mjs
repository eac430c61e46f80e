// npm run build:release [-- <Rust target>]: the binary as it is published, in npm/<platform>/.
import { copyFileSync } from 'node:fs'
import { buildAddon } from './addon.mjs'
import { ask, fail } from './steps.mjs'

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

const file = `npm/${platform}/node-mamba.${platform}.node`
copyFileSync(buildAddon(target), file)
console.log(file)
