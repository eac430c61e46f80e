import { styled } from './terminal.js'

const width = 24
const interval = 100

/** A line on standard error that says how far long work has come; nothing where that is no terminal. */
export class Progress {
  readonly #title: string
  readonly #start = performance.now()
  #drawn = 0
  #shown = false

  constructor(title: string) {
    this.#title = title
  }

  /** `share`, 0 to 1, of the work is done (undefined: unknown); `detail` says it in the work's own unit. */
  update(share: number | undefined, detail: string): void {
    const now = performance.now()
    if (!process.stderr.isTTY || now - this.#drawn < interval) return
    this.#drawn = now
    this.#shown = true
    process.stderr.write(`\r\x1b[K${this.#line(share, detail, (now - this.#start) / 1000)}`)
  }

  #line(share: number | undefined, detail: string, seconds: number): string {
    const title = `${this.#title} `
    if (share === undefined) return `${title}${detail}`
    const full = Math.round(width * Math.min(share, 1))
    const bar = styled(process.stderr, 'cyan', '█'.repeat(full)) + '░'.repeat(width - full)
    const left = share > 0.01 && share < 1 ? `, ${duration((seconds / share) * (1 - share))} left` : ''
    return `${title}${bar} ${String(Math.floor(share * 100)).padStart(3)} % ${detail}${left}`
  }

  /** Takes the line away. */
  done(): void {
    if (this.#shown) process.stderr.write('\r\x1b[K')
    this.#shown = false
  }
}

function duration(seconds: number): string {
  if (seconds < 90) return `${Math.ceil(seconds)} s`
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`
}
