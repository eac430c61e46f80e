#!/usr/bin/env node
import { CommanderError } from 'commander'
import { MambaError } from '../errors.js'
import { interruptStatus, watchSignals } from './interrupt.js'
import { createProgram } from './program.js'
import { styled } from './terminal.js'

/** Runs a command; the exit status where that is not 0: see docs/cli.md. */
async function main(): Promise<number | undefined> {
  watchSignals()
  try {
    await createProgram().parseAsync()
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
    if (!(error instanceof MambaError)) throw error
    if (interruptStatus() === undefined) {
      process.stderr.write(`${styled(process.stderr, 'red', error.code)}: ${error.message}\n`)
      return error.code === 'OPTION_INVALID' ? 2 : 1
    }
  }
  return interruptStatus()
}

void main().then((status) => {
  process.exitCode ??= status
  process.stdin.destroy() // so that a terminal that nobody reads does not keep the process
})
