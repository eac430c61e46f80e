// node benches/speed.mjs: tokens per second of the CPU path on random weights of published shapes, best of the
// example's rounds, into benches/results/cpu-speed.json. Run it on a quiet machine.
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { origin } from './record.mjs'

const cargo = (...args) =>
  execFileSync('cargo', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] })

cargo('build', '--release', '-p', 'mamba', '--example', 'speed')
const rows = []
for (const shape of ['130m', '370m']) {
  for (const dtype of ['f32', 'bf16', 'f16', 'q8_0', 'q4_k']) {
    for (const threads of [1, 2]) {
      const output = execFileSync('target/release/examples/speed', [shape, dtype, String(threads)], {
        encoding: 'utf8',
      })
      const [, ...rounds] = output
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line))
      const row = { shape, dtype, threads }
      for (const name of Object.keys(rounds[0])) {
        row[name] = Number(Math.max(...rounds.map((round) => round[name])).toFixed(1))
      }
      rows.push(row)
      console.log(row)
    }
  }
}

const cpuinfo = readFileSync('/proc/cpuinfo', 'utf8')
const record = {
  ...origin(),
  flags: /flags\s*:\s*(.*)/
    .exec(cpuinfo)?.[1]
    .split(' ')
    .filter((flag) => /avx|amx|fma|f16c/.test(flag)),
  unit: 'tokens/s',
  rows,
}
writeFileSync('benches/results/cpu-speed.json', `${JSON.stringify(record, null, 2)}\n`)
