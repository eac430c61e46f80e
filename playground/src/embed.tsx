import { useState } from 'preact/hooks'
import { embed } from './api.js'
import { map2d, similarities } from './vectors.js'

const example = `The ship sailed out of the harbour.
The sailors went aboard their vessel.
She poured the tea and sat by the fire.
He drank his coffee in the parlour.
The judge pronounced the sentence.
The prisoner stood before the court.`

/** More would neither be read nor drawn. */
const most = 50

/** A list of texts: how alike they are, pair by pair and on a map. */
export function Embed({ model }: { model: string }) {
  const [list, setList] = useState(example)
  const [result, setResult] = useState<{ texts: string[]; vectors: Float32Array[] }>()
  const [said, setSaid] = useState<{ words: string; problem?: boolean }>({ words: '' })
  const texts = list
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
  const run = async () => {
    setSaid({ words: 'Embedding' })
    try {
      setResult({ texts, vectors: await embed(model, texts) })
      setSaid({ words: `${texts.length} texts embedded` })
    } catch (error) {
      setSaid({ words: (error as Error).message, problem: true })
    }
  }
  return (
    <>
      <form
        class="prompt-form"
        onSubmit={(event) => {
          event.preventDefault()
          void run()
        }}
        onKeyDown={(event) => {
          if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.currentTarget.requestSubmit()
        }}
      >
        <label for="texts">
          Texts, a line each <small>{most} at most</small>
        </label>
        <textarea id="texts" rows={7} value={list} onInput={(event) => setList(event.currentTarget.value)} />
        <div class="buttons">
          <button type="submit" class="main" disabled={texts.length === 0 || texts.length > most}>
            Embed
          </button>
          <span class="keys">
            <kbd>Ctrl</kbd> <kbd>Enter</kbd> embeds
          </span>
        </div>
      </form>
      <p role="status" class={said.problem ? 'problem' : 'unseen'}>
        {said.words}
      </p>
      {result && (
        <div class="sides">
          <Matrix {...result} />
          <Map {...result} />
        </div>
      )}
    </>
  )
}

function Matrix({ texts, vectors }: { texts: string[]; vectors: Float32Array[] }) {
  const rows = similarities(vectors)
  const others = rows.flatMap((row, i) => row.filter((_, j) => j !== i))
  const [low, high] = [Math.min(...others), Math.max(...others)]
  /** The tint goes from the least alike pair to the most alike one. */
  const tint = (value: number) => Math.round(((value - low) / (high - low || 1)) * 8)
  return (
    <section aria-label="Similarity">
      <h2>Similarity</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Similarity of each pair">
        <table class="matrix">
          <thead>
            <tr>
              <td />
              {texts.map((text, j) => (
                <th scope="col" key={j} title={text}>
                  {j + 1}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row, i) => (
              <tr key={i}>
                <th scope="row">
                  <span class="ordinal">{i + 1}</span> {texts[i]}
                </th>
                {row.map((value, j) => (
                  <td key={j} class={i === j ? 'self' : `alike-${tint(value)}`}>
                    {value.toFixed(2)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  )
}

const [width, height, margin] = [520, 380, 36]

function Map({ texts, vectors }: { texts: string[]; vectors: Float32Array[] }) {
  const places = map2d(vectors)
  const scale = (index: 0 | 1, size: number) => {
    const values = places.map((place) => place[index])
    const [low, high] = [Math.min(...values), Math.max(...values)]
    return (value: number) => margin + ((value - low) / (high - low || 1)) * (size - 2 * margin)
  }
  const [x, y] = [scale(0, width), scale(1, height)]
  const points = places.map((place, i) => ({ x: x(place[0]), y: y(place[1]), text: texts[i]! }))
  const labels = placeLabels(points)
  return (
    <section aria-label="Map">
      <h2>Map</h2>
      <svg
        class="map"
        viewBox={`0 0 ${width} ${height}`}
        role="img"
        aria-label="The texts on a plane, alike ones near each other; the numbers are those of the table"
      >
        {points.map(({ x, y, text }, i) => (
          <g key={i}>
            <title>{text}</title>
            <circle cx={x} cy={y} r="13" />
            <text x={x} y={y} dy="0.35em" text-anchor="middle">
              {i + 1}
            </text>
          </g>
        ))}
        {labels.map(({ x, y, anchor, text }, i) => (
          <text class="label" key={i} x={x} y={y} dy="0.35em" text-anchor={anchor}>
            {text}
          </text>
        ))}
      </svg>
      <p class="note">The two directions in which the texts differ most (principal components).</p>
    </section>
  )
}

interface Point {
  x: number
  y: number
  text: string
}

/** A label beside each point, on the side where there is room, and not over another one where that can be. */
function placeLabels(points: Point[]) {
  const [line, letter] = [15, 6.3]
  const placed: { left: number; right: number; y: number }[] = []
  return points.map(({ x, y: at, text: whole }) => {
    const text = whole.length > 28 ? `${whole.slice(0, 27)}…` : whole
    const toRight = x < width / 2
    const start = toRight ? x + 19 : x - 19
    const [left, right] = toRight
      ? [start, start + letter * text.length]
      : [start - letter * text.length, start]
    const free = (y: number) =>
      y > line &&
      y < height - line &&
      placed.every((other) => other.right < left || other.left > right || Math.abs(other.y - y) >= line) &&
      points.every((p) => p.x + 14 < left || p.x - 14 > right || Math.abs(p.y - y) >= 18)
    const y = [0, -line, line, -2 * line, 2 * line].map((shift) => at + shift).find(free) ?? at
    placed.push({ left, right, y })
    return { x: start, y, text, anchor: toRight ? ('start' as const) : ('end' as const) }
  })
}
