import { version } from 'node-mamba'

console.log(`node-mamba ${version()}`)
