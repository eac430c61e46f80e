// npm run build:cuda: the CUDA build's binary as it is published, in npm-cuda/linux-x64-gnu/. No GPU is needed.
// NODE_MAMBA_CUDA_ARCHS (90, say) compiles the kernels for fewer GPUs than are published, which is quicker.
import { copyFileSync } from 'node:fs'
import { buildAddon } from './addon.mjs'
import { cudaEnvironment, fetchCudaToolkit } from './cuda-toolkit.mjs'

fetchCudaToolkit()
const library = buildAddon('x86_64-unknown-linux-gnu', { args: ['--features=cuda'], env: cudaEnvironment() })
const file = 'npm-cuda/linux-x64-gnu/node-mamba-cuda.linux-x64-gnu.node'
copyFileSync(library, file)
console.log(file)
