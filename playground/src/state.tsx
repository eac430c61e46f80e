import type { Generated } from './generation.js'
import { grouped } from './numbers.js'

/** The text grows, the state does not. */
export function State({ generated }: { generated: Generated }) {
  const { tokens, prompt, bytes, context, computed, rate, status } = generated
  if (status === 'empty' || bytes === 0) return null
  const lengths = [prompt.length]
  for (const { text } of tokens) lengths.push(lengths.at(-1)! + text.length)
  return (
    <dl class="state">
      <div>
        <dt>Text</dt>
        <dd>
          {grouped(context)} tokens <small>grows</small>
        </dd>
        <Line values={lengths} />
      </div>
      <div>
        <dt>State</dt>
        <dd>
          {grouped(bytes)} bytes <small>constant</small>
        </dd>
        <Line values={lengths.map(() => 1)} top={1.6} />
      </div>
      <div>
        <dt>Read for this</dt>
        <dd>
          {grouped(computed)} <small>of {grouped(context - tokens.length)} tokens</small>
        </dd>
      </div>
      <div>
        <dt>Speed</dt>
        <dd>{rate === undefined ? '…' : `${grouped(rate)} tokens/s`}</dd>
      </div>
    </dl>
  )
}

/** How a number went, from 0 at the bottom. */
function Line({ values, top = Math.max(...values, 1) }: { values: number[]; top?: number }) {
  const x = (index: number) => (values.length > 1 ? (index / (values.length - 1)) * 100 : 0)
  const points = values.map(
    (value, index) => `${x(index).toFixed(1)},${(24 - (value / top) * 22).toFixed(1)}`,
  )
  return (
    <svg class="line" viewBox="0 0 100 25" preserveAspectRatio="none" aria-hidden="true">
      <polyline
        points={
          points.length > 1
            ? points.join(' ')
            : `0,${points[0]!.split(',')[1]} 100,${points[0]!.split(',')[1]}`
        }
      />
    </svg>
  )
}
