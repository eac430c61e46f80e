import { useId } from 'preact/hooks'
import type { Sampling } from './api.js'

export const defaults: Sampling = {
  temperature: 0.8,
  top_p: 0.95,
  top_k: 0,
  min_p: 0,
  repetition_penalty: 1,
  max_tokens: 120,
  seed: '',
}

interface Slider {
  name: Exclude<keyof Sampling, 'seed'>
  label: string
  hint: string
  min: number
  max: number
  step: number
}

const sliders: Slider[] = [
  { name: 'temperature', label: 'Temperature', hint: '0: greedy', min: 0, max: 2, step: 0.05 },
  { name: 'top_p', label: 'Top-p', hint: '1: off', min: 0.05, max: 1, step: 0.05 },
  { name: 'top_k', label: 'Top-k', hint: '0: off', min: 0, max: 200, step: 1 },
  { name: 'min_p', label: 'Min-p', hint: '0: off', min: 0, max: 0.5, step: 0.01 },
  { name: 'repetition_penalty', label: 'Repetition penalty', hint: '1: off', min: 1, max: 2, step: 0.05 },
]

/** The sampling controls. */
export function Settings(props: {
  legend: string
  value: Sampling
  maxTokens: number
  onChange: (value: Sampling) => void
}) {
  const { legend, value, maxTokens, onChange } = props
  const id = useId()
  const tokens: Slider = {
    ...{ name: 'max_tokens', label: 'Length', hint: 'tokens', min: 1, step: 1 },
    max: Math.min(maxTokens, 1000),
  }
  return (
    <fieldset class="settings">
      <legend>{legend}</legend>
      {[...sliders, tokens].map(({ name, label, hint, min, max, step }) => (
        <div class="setting" key={name}>
          <label for={`${id}-${name}`}>
            {label} <small>{hint}</small>
          </label>
          <output for={`${id}-${name}`}>{value[name]}</output>
          <input
            type="range"
            id={`${id}-${name}`}
            {...{ min, max, step }}
            value={value[name]}
            onInput={(event) => onChange({ ...value, [name]: Number(event.currentTarget.value) })}
          />
        </div>
      ))}
      <div class="setting">
        <label for={`${id}-seed`}>
          Seed <small>empty: another each time</small>
        </label>
        <input
          class="seed"
          id={`${id}-seed`}
          inputMode="numeric"
          autocomplete="off"
          value={value.seed}
          onInput={(event) => {
            const seed = event.currentTarget.value.replaceAll(/\D/g, '').slice(0, 15)
            event.currentTarget.value = seed
            onChange({ ...value, seed })
          }}
        />
      </div>
    </fieldset>
  )
}
