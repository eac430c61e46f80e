// node scripts/cuda-toolkit.mjs: NVIDIA's compiler for the CUDA kernels, in .cache/cuda-toolkit, from Python wheels.
// No GPU, no driver and no root is needed; the libraries that the package needs when it runs are not among them.
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { ask, fail, root, run, step } from './steps.mjs'

// Of one release: a mix of 13.0 and later ones does not compile. The headers of crt and cccl are included by the
// others' own.
const wheels = {
  'nvidia-cuda-nvcc': '13.0.88',
  'nvidia-cuda-crt': '13.0.88',
  'nvidia-nvvm': '13.0.88',
  'nvidia-cuda-runtime': '13.0.96',
  'nvidia-cuda-cccl': '13.0.85',
}
const names = Object.entries(wheels).map(([name, version]) => `${name}==${version}`)
const folder = `${root}/.cache/cuda-toolkit`
const home = `${folder}/nvidia/cu13`

/** Whether exactly these wheels are unpacked there, and the compiler runs. */
function isComplete() {
  return (
    Object.entries(wheels).every(([name, version]) =>
      existsSync(`${folder}/${name.replaceAll('-', '_')}-${version}.dist-info`),
    ) && ask(`${home}/bin/nvcc`, '--version')?.includes(`V${wheels['nvidia-cuda-nvcc']}`)
  )
}

function fetch() {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    fail(`the CUDA build is made on Linux x64, and this is ${process.platform} ${process.arch}`)
  if (ask('python3', '-m', 'pip', '--version') === null)
    fail(
      'python3 with pip is not there: it fetches NVIDIA’s compiler (on Debian: apt-get install python3-pip)',
    )
  // Elsewhere first, so that a download that breaks off leaves nothing that looks complete.
  const unfinished = `${folder}.${process.pid}`
  rmSync(unfinished, { recursive: true, force: true })
  mkdirSync(`${root}/.cache`, { recursive: true })
  const flags = ['--quiet', '--no-deps', '--no-compile', '--only-binary=:all:', `--target=${unfinished}`]
  const status = run('python3', ['-m', 'pip', 'install', ...flags, ...names], {
    env: { PIP_ROOT_USER_ACTION: 'ignore' },
  })
  if (status !== 0) {
    rmSync(unfinished, { recursive: true, force: true })
    fail(
      `pip could not fetch ${names.join(', ')}; it needs a package index that has them (see pip config list), ` +
        'room for 300 MB',
    )
  }
  rmSync(folder, { recursive: true, force: true })
  renameSync(unfinished, folder)
}

/** Cargo's environment to compile the kernels in, whatever this machine's CUDA_HOME has; null if nothing was fetched. */
export function cudaEnvironment() {
  return isComplete() ? { NVCC: `${home}/bin/nvcc`, CUDA_HOME: home } : null
}

/** Fetches the toolkit if it is not there. */
export function fetchCudaToolkit() {
  if (isComplete()) return
  if (ask('g++', '--version') === null)
    fail('g++ is not there: NVIDIA’s compiler calls it (on Debian: apt-get install g++)')
  step('Fetching NVIDIA’s compiler', fetch)
  if (!isComplete()) fail(`${folder} is not what was asked for, ${names.join(' ')}; remove it and try again`)
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) fetchCudaToolkit()
