import { useEffect, useRef, useState } from 'preact/hooks'
import type { Generated, Token } from './generation.js'
import { percent, visible } from './numbers.js'

/** How sure the model was, in five steps for the eye. */
function step(logprob: number): string {
  const probability = Math.exp(logprob)
  const index = [0.02, 0.1, 0.3, 0.7].findIndex((limit) => probability < limit)
  return `sure-${index === -1 ? 4 : index}`
}

/**
 * The text as it comes, each token tinted by its probability. One token at a time is in the tab order: arrow keys move
 * from token to token, and what is chosen shows what else could have been there.
 */
export function Tokens(props: {
  generated: Generated
  label: string
  /** Goes on from a token: with another one in its place, or drawn anew from there. */
  onRegenerate?: (kept: Token[]) => void
}) {
  const { generated, label, onRegenerate } = props
  const { prompt, tokens, status } = generated
  const [chosen, setChosen] = useState<number>()
  const list = useRef<HTMLDivElement>(null)
  const current = chosen !== undefined && chosen < tokens.length ? chosen : undefined

  useEffect(() => {
    // What is written is followed, unless someone reads further up.
    const element = list.current
    if (element && element.scrollHeight - element.scrollTop - element.clientHeight < 80) {
      element.scrollTop = element.scrollHeight
    }
  }, [tokens.length])

  const move = (to: number) => {
    const index = Math.max(0, Math.min(tokens.length - 1, to))
    setChosen(index)
    list.current?.querySelector<HTMLElement>(`[data-index="${index}"]`)?.focus()
  }
  const onKeyDown = (event: KeyboardEvent) => {
    const at = current ?? 0
    const targets: Record<string, number> = {
      ...{ ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10 },
      ...{ Home: 0, End: tokens.length - 1 },
    }
    const target = targets[event.key]
    if (target === undefined) return
    event.preventDefault()
    move(target)
  }

  if (status === 'empty') {
    return (
      <div class="text hint">
        What the model writes appears here, tinted by how sure it was of each token.
      </div>
    )
  }
  return (
    <>
      <div class="text" ref={list} role="group" aria-label={label} onKeyDown={onKeyDown}>
        <span class="prompt">{prompt}</span>
        {tokens.map((token, index) => (
          <TokenButton
            key={index}
            {...{ token, index }}
            pressed={index === current}
            tabbable={index === (current ?? 0)}
            onPress={setChosen}
          />
        ))}
        {status === 'running' && <span class="caret" aria-hidden="true" />}
      </div>
      <Legend />
      {current !== undefined && (
        <Alternatives
          token={tokens[current]!}
          index={current}
          disabled={status === 'running' || !onRegenerate}
          onDrawAnew={() => onRegenerate?.(tokens.slice(0, current))}
          onChoose={(token) => onRegenerate?.([...tokens.slice(0, current), token])}
          onClose={() => setChosen(undefined)}
        />
      )}
    </>
  )
}

function Legend() {
  return (
    <p class="legend">
      Probability of a token:
      <span class="sure-0">below 2 %</span>
      <span class="sure-1">10 %</span>
      <span class="sure-2">30 %</span>
      <span class="sure-3">70 %</span>
      <span>above</span>
    </p>
  )
}

function TokenButton(props: {
  token: Token
  index: number
  pressed: boolean
  tabbable: boolean
  onPress: (index: number) => void
}) {
  const { token, index, pressed, tabbable, onPress } = props
  return (
    <span
      role="button"
      class={`token ${step(token.logprob)}${token.chosen ? ' chosen' : ''}`}
      data-index={index}
      tabIndex={tabbable ? 0 : -1}
      aria-pressed={pressed}
      aria-label={`${visible(token.text)}, ${percent(token.logprob)}`}
      title={percent(token.logprob)}
      onClick={() => onPress(index)}
      onKeyDown={(event) => {
        if (event.key !== 'Enter' && event.key !== ' ') return
        event.preventDefault()
        onPress(index)
      }}
    >
      {token.text}
    </span>
  )
}

/** What else could have been there, and how to go on with it. */
function Alternatives(props: {
  token: Token
  index: number
  disabled: boolean
  onDrawAnew: () => void
  onChoose: (token: Token) => void
  onClose: () => void
}) {
  const { token, index, disabled, onDrawAnew, onChoose, onClose } = props
  return (
    <section class="alternatives" aria-label={`Token ${index + 1}`}>
      <header>
        <h3>
          Token {index + 1} <code>{visible(token.text)}</code> {percent(token.logprob)}
        </h3>
        <button type="button" class="quiet" disabled={disabled} onClick={onDrawAnew}>
          Regenerate from here
        </button>
        <button type="button" class="quiet icon" aria-label="Close" onClick={onClose}>
          ×
        </button>
      </header>
      <ol>
        {token.top.map((other) => (
          <li key={other.id}>
            <button
              type="button"
              class={other.id === token.id ? 'alternative current' : 'alternative'}
              disabled={disabled}
              aria-label={`Go on with ${visible(other.text)}, ${percent(other.logprob)}`}
              onClick={() => onChoose({ ...other, top: token.top, chosen: true })}
            >
              <code>{visible(other.text)}</code>
              <span class="share" aria-hidden="true">
                <span style={{ width: `${Math.exp(other.logprob) * 100}%` }} />
              </span>
              <span class="number">{percent(other.logprob)}</span>
            </button>
          </li>
        ))}
      </ol>
    </section>
  )
}
