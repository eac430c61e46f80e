import { useState } from 'preact/hooks'
import type { Sampling } from './api.js'
import { useGeneration } from './generation.js'
import { defaults, Settings } from './settings.js'
import { State } from './state.js'
import { Tokens } from './tokens.js'
import { Prompt, Said } from './write.js'

/** One prompt, two settings, side by side. */
export function Compare({ model, maxTokens }: { model: string; maxTokens: number }) {
  const [prompt, setPrompt] = useState('The ship sailed out of the harbour')
  const [a, setA] = useState<Sampling>({ ...defaults, temperature: 0 })
  const [b, setB] = useState<Sampling>({ ...defaults, temperature: 1.2 })
  const sides = [
    { name: 'A', value: a, set: setA, generation: useGeneration(model, a) },
    { name: 'B', value: b, set: setB, generation: useGeneration(model, b) },
  ]
  return (
    <>
      <Prompt
        value={prompt}
        busy={sides.some(({ generation }) => generation.generated.status === 'running')}
        onInput={setPrompt}
        onRun={() => sides.forEach(({ generation }) => void generation.run(prompt))}
        onStop={() => sides.forEach(({ generation }) => generation.stop())}
      />
      <div class="sides">
        {sides.map(({ name, value, set, generation: { generated, run } }) => (
          <section key={name} aria-label={name}>
            <Settings legend={name} value={value} maxTokens={maxTokens} onChange={set} />
            <Said generated={generated} name={name} />
            <Tokens
              generated={generated}
              label={`Generated text ${name}`}
              onRegenerate={(kept) => void run(generated.prompt, kept)}
            />
            <State generated={generated} />
          </section>
        ))}
      </div>
    </>
  )
}
