#!/usr/bin/env node
import { parseArgs } from 'node:util'
import { MambaError } from '../errors.js'
import type { Command } from './command.js'
import { doctor } from './doctor.js'

const commands: Record<string, Command> = { doctor }

/** Runs a command; the exit status: 1 when it fails, 2 when it was called the wrong way. */
async function main(args: string[]): Promise<number> {
  const name = args[0]
  if (name === undefined || name === '--help' || name === '-h') {
    console.log(usage())
    return name === undefined ? 2 : 0
  }
  const command = Object.hasOwn(commands, name) ? commands[name]! : undefined
  if (!command) {
    console.error(`there is no command '${name}'\n\n${usage()}`)
    return 2
  }
  let values
  try {
    const help = { type: 'boolean', short: 'h' } as const
    values = parseArgs({ args: args.slice(1), options: { ...command.options, help } }).values
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${command.help}`)
    return 2
  }
  if (values.help) {
    console.log(command.help)
    return 0
  }
  try {
    return await command.run(values)
  } catch (error) {
    if (!(error instanceof MambaError)) throw error
    console.error(`${error.code}: ${error.message}`)
    return 1
  }
}

function usage(): string {
  const lines = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(10)}${summary}`)
  return ['usage: node-mamba <command> [options]', '', ...lines, '', 'node-mamba <command> --help'].join('\n')
}

void main(process.argv.slice(2)).then((status) => (process.exitCode = status))
