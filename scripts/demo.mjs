// npm run demo [-- "a prompt"]
import { bootstrap } from './bootstrap.mjs'
import { run } from './steps.mjs'

bootstrap()
process.exitCode = run(process.execPath, ['--import=tsx', 'examples/demo.ts', ...process.argv.slice(2)])
