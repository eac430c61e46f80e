// What every bench's record begins with: when, of which sources, and on what it was measured.
import { spawnSync } from 'node:child_process'
import { cpus } from 'node:os'

/** Nothing where there is no repository: a machine that only has the packages. */
const git = (...args) => spawnSync('git', args, { encoding: 'utf8' }).stdout?.trim()

export const origin = () => ({
  date: new Date().toISOString(),
  commit: git('rev-parse', 'HEAD'),
  clean: git('status', '--porcelain') === '',
  processor: cpus()[0].model,
  cores: cpus().length,
})
