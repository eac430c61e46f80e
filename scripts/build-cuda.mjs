// npm run build:cuda: the CUDA build's binary as it is published, in npm-cuda/linux-x64-gnu/. No GPU is needed.
// NODE_MAMBA_CUDA_ARCHS (90, say) compiles the kernels for fewer GPUs than are published, which is quicker.
import { copyFileSync } from 'node:fs'
import { buildAddon } from './addon.mjs'
import { cudaToolkit } from './cuda-toolkit.mjs'
import { ask, fail } from './steps.mjs'

if (ask('g++', '--version') === null)
  fail('g++ is not there: NVIDIA’s compiler calls it (on Debian: apt-get install g++)')
const home = cudaToolkit()
const library = buildAddon('x86_64-unknown-linux-gnu', {
  args: ['--features=cuda'],
  // The pinned compiler, whatever this machine's CUDA_HOME has.
  env: { NVCC: `${home}/bin/nvcc`, CUDA_HOME: home },
})
const file = 'npm-cuda/linux-x64-gnu/node-mamba-cuda.linux-x64-gnu.node'
copyFileSync(library, file)
console.log(file)
