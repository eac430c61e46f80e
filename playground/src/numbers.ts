/** A number with its thousands apart. */
export const grouped = (count: number) => count.toLocaleString('en-US', { maximumFractionDigits: 0 })

/** The probability of a logarithm. */
export function percent(logprob: number): string {
  const share = Math.exp(logprob) * 100
  return `${share >= 99.95 ? '100' : share >= 0.1 ? share.toFixed(1) : share.toPrecision(1)} %`
}

/** A token's text with what is not seen made visible. */
export const visible = (text: string) =>
  text.replaceAll(' ', '␣').replaceAll('\n', '⏎').replaceAll('\t', '⇥') || '∅'
