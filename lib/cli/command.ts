import type { ParseArgsConfig } from 'node:util'

/** The values of a command's options by their names; those that were not given are missing. */
export type Values = Record<string, string | boolean | (string | boolean)[] | undefined>

/** One of the program's commands. */
export interface Command {
  /** One line for the list of commands. */
  summary: string
  /** What `--help` prints. */
  help: string
  /** As `parseArgs` of node:util takes them; `--help` is every command's. */
  options: NonNullable<ParseArgsConfig['options']>
  /** Gives the exit status. A `MambaError` that it throws is printed, and the status is 1. */
  run(values: Values): Promise<number>
}
