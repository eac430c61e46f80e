// What the comparison needs of others, once, under .cache/llama-cpp/: llama.cpp built from llama-cpp-python's source
// package for this very processor, the gguf package, and node-llama-cpp with the binaries that its packages ship.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'

export const cache = '.cache/llama-cpp'
const llama = 'llama-cpp-python==0.3.36'
const python = ['gguf==0.19.0', 'numpy==2.4.6', 'threadpoolctl==3.8.0']
const nodeLlama = ['node-llama-cpp@3.22.1', '@node-llama-cpp/linux-x64@3.22.1']
const cmake = [
  'GGML_NATIVE=ON',
  'GGML_LLAMAFILE=ON',
  'GGML_OPENMP=ON',
  'LLAMA_BUILD_TESTS=OFF',
  'LLAMA_BUILD_EXAMPLES=OFF',
  'LLAMA_BUILD_TOOLS=OFF',
  'LLAMA_BUILD_SERVER=OFF',
  'MTMD_BUILD=OFF',
]

/** Runs a program, its output into a log file; fails with the end of the log. */
function logged(log, command, args, options) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 30,
    ...options,
  })
  writeFileSync(`${cache}/${log}.log`, `${stdout}\n${stderr}`)
  if (status !== 0)
    throw new Error(`${command} failed (${cache}/${log}.log): ${error ?? stderr.slice(-2000)}`)
}

/** The Python that has llama.cpp, and what was built. */
export function setupPython() {
  mkdirSync(cache, { recursive: true })
  const interpreter = `${cache}/venv/bin/python`
  if (!existsSync(interpreter)) execFileSync('python3', ['-m', 'venv', `${cache}/venv`], { stdio: 'inherit' })
  const flags = `-include ${resolve('benches/llama-cpp/tile_config.h')}`
  const args = [...cmake.map((option) => `-D${option}`), `-DCMAKE_CXX_FLAGS='${flags}'`].join(' ')
  const compiler = execFileSync('c++', ['--version'], { encoding: 'utf8' }).split('\n')[0]
  const build = JSON.stringify({ llama, args, compiler })
  const done = `${cache}/wheels/build.json`
  if (!existsSync(done) || readFileSync(done, 'utf8') !== build) {
    console.log(`building ${llama}: some minutes`)
    const wheel = ['-m', 'pip', 'wheel', '--no-deps', '--no-cache-dir', '--no-binary=llama-cpp-python']
    logged('build', interpreter, [...wheel, '-v', `--wheel-dir=${cache}/wheels`, llama], {
      env: { ...process.env, CMAKE_ARGS: args },
    })
    const wheels = [`--find-links=${cache}/wheels`, '--no-deps', '--force-reinstall', '--no-index']
    logged('install', interpreter, ['-m', 'pip', 'install', ...wheels, llama])
    // Its server's dependencies are left out: what `import llama_cpp` needs is here.
    const needed = [...python, 'typing-extensions', 'diskcache', 'jinja2']
    logged('packages', interpreter, ['-m', 'pip', 'install', ...needed])
    writeFileSync(done, build)
  }
  const libraries = execFileSync(
    interpreter,
    ['-c', 'import importlib.util as u; print(u.find_spec("llama_cpp").submodule_search_locations[0])'],
    { encoding: 'utf8' },
  ).trim()
  return {
    interpreter,
    package: llama,
    // libllama.so.0.1.2 and libggml.so.0.1.2
    libraries: readdirSync(`${libraries}/lib`).filter((name) => /^lib(llama|ggml)\.so\.\d+\.\d/.test(name)),
    cmake,
    compiler,
  }
}

/** The module of node-llama-cpp, or null where npm cannot install it. */
export function setupNode() {
  const folder = `${cache}/node`
  const module = `${folder}/node_modules/node-llama-cpp/dist/index.js`
  if (!existsSync(module)) {
    mkdirSync(folder, { recursive: true })
    writeFileSync(`${folder}/package.json`, '{ "private": true }\n')
    try {
      // Neither its install script, which builds or downloads, nor the packages for GPUs.
      const options = ['--ignore-scripts', '--omit=optional', '--no-audit', '--no-fund']
      logged('node', 'npm', ['install', ...options, ...nodeLlama], { cwd: folder })
    } catch (error) {
      console.log(`node-llama-cpp is left out: ${error.message}`)
      return null
    }
  }
  return { module, package: nodeLlama[0] }
}
