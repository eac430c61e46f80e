import { useId, useState } from 'preact/hooks'
import type { Sampling } from './api.js'
import { useGeneration, type Generated } from './generation.js'
import { grouped } from './numbers.js'
import { defaults, Settings } from './settings.js'
import { State } from './state.js'
import { Tokens } from './tokens.js'

/** Write a beginning, and watch how the model goes on. */
export function Write({ model, maxTokens }: { model: string; maxTokens: number }) {
  const [prompt, setPrompt] = useState('It was a dark and stormy night')
  const [sampling, setSampling] = useState<Sampling>(defaults)
  const { generated, run, stop } = useGeneration(model, sampling)
  return (
    <div class="columns">
      <div>
        <Prompt
          value={prompt}
          onInput={setPrompt}
          onRun={() => void run(prompt)}
          onStop={stop}
          busy={generated.status === 'running'}
        >
          {generated.status !== 'empty' && generated.status !== 'running' && (
            <button type="button" onClick={() => void run(generated.prompt, generated.tokens)}>
              Go on
            </button>
          )}
        </Prompt>
        <Said generated={generated} name="Text" />
        <Tokens
          generated={generated}
          label="Generated text"
          onRegenerate={(kept) => void run(generated.prompt, kept)}
        />
      </div>
      <div>
        <Settings legend="Sampling" value={sampling} maxTokens={maxTokens} onChange={setSampling} />
        <State generated={generated} />
      </div>
    </div>
  )
}

/** The prompt and what starts and stops. */
export function Prompt(props: {
  value: string
  busy: boolean
  onInput: (value: string) => void
  onRun: () => void
  onStop: () => void
  children?: preact.ComponentChildren
}) {
  const { value, busy, onInput, onRun, onStop, children } = props
  const id = useId() // two tabs have one, and both are in the page
  return (
    <form
      class="prompt-form"
      onSubmit={(event) => {
        event.preventDefault()
        if (!busy && value !== '') onRun()
      }}
      onKeyDown={(event) => {
        if (event.key === 'Escape') onStop()
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.currentTarget.requestSubmit()
      }}
    >
      <label for={id}>Prompt</label>
      <textarea id={id} rows={3} value={value} onInput={(event) => onInput(event.currentTarget.value)} />
      <div class="buttons">
        {/* Keys: were it one button, the click that stops would find it a submit button, and submit. */}
        {busy ? (
          <button key="stop" type="button" class="stop" onClick={onStop}>
            Stop
          </button>
        ) : (
          <button key="generate" type="submit" class="main" disabled={value === ''}>
            Generate
          </button>
        )}
        {children}
        <span class="keys">
          <kbd>Ctrl</kbd> <kbd>Enter</kbd> generates, <kbd>Esc</kbd> stops
        </span>
      </div>
    </form>
  )
}

/** What happened, in words: read out by a screen reader when it changes, shown where it went wrong. */
export function Said({ generated, name }: { generated: Generated; name: string }) {
  const { status, tokens, problem } = generated
  const words = {
    empty: '',
    running: `${name}: generating`,
    done: `${name}: finished, ${grouped(tokens.length)} tokens`,
    stopped: `${name}: stopped after ${grouped(tokens.length)} tokens`,
    failed: problem ?? '',
  }[status]
  return (
    <p role="status" class={status === 'failed' ? 'problem' : 'unseen'}>
      {words}
    </p>
  )
}
