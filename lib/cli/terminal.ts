import { styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

/** Text in a style where `stream` is a terminal that shows it; NO_COLOR and TERM=dumb count. */
export function styled(stream: NodeJS.WriteStream, style: Style, text: string): string {
  return stream.isTTY && stream.hasColors() ? styleText(style, text) : text
}

/** Writes to standard output and waits until it has gone, so that a slow reader slows the writer. */
export function print(text: string): Promise<void> {
  return new Promise((resolve) => {
    // An error is main's to handle: the reader has gone.
    process.stdout.write(text, () => resolve())
  })
}

/** One JSON value, a line. */
export function printJson(value: unknown): Promise<void> {
  return print(`${JSON.stringify(value)}\n`)
}

/** Rows of a name and a value, values below each other; a row without a value is left out. */
export function table(rows: readonly (readonly [string, string | undefined])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length)) + 2
  return rows
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name.padEnd(width)}${value!.replaceAll('\n', `\n${' '.repeat(width)}`)}`)
    .join('\n')
}

/** A number of bytes for people. */
export function bytes(count: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB']
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), units.length - 1)
  return `${(count / 1000 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`
}

/** A number with thousands separated. */
export function grouped(count: number): string {
  return count.toLocaleString('en-US', { maximumFractionDigits: 1 })
}
