import { render } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import { hasKey, listModels, Refused, setKey, type Model } from './api.js'
import { Compare } from './compare.js'
import { Embed } from './embed.js'
import { grouped } from './numbers.js'
import { Write } from './write.js'

const tabs = { Write, Compare, Embed }
type Tab = keyof typeof tabs
const names = Object.keys(tabs) as Tab[]

function App() {
  const [models, setModels] = useState<Model[]>([])
  const [maxTokens, setMaxTokens] = useState(1000)
  const [model, setModel] = useState('')
  const [tab, setTab] = useState<Tab>('Write')
  const [problem, setProblem] = useState<Refused>()

  const load = () =>
    listModels().then(
      ({ models, maxTokens }) => {
        setProblem(undefined)
        setModels(models)
        setMaxTokens(maxTokens)
        setModel(models[0]!.name)
      },
      (error: Refused) => setProblem(error),
    )
  useEffect(() => void load(), [])

  const known = models.find(({ name }) => name === model)
  return (
    <>
      <header class="top">
        <h1>
          node-mamba <span>playground</span>
        </h1>
        {known && (
          <div class="model">
            <label for="model">Model</label>
            <select id="model" value={model} onChange={(event) => setModel(event.currentTarget.value)}>
              {models.map(({ name }) => (
                <option key={name}>{name}</option>
              ))}
            </select>
            <span>
              {grouped(known.parameters)} parameters, {known.dtype} on {known.device.toUpperCase()}
            </span>
          </div>
        )}
      </header>
      <main>
        {problem &&
          (problem.status === 401 ? (
            <Key onKey={load} />
          ) : (
            <p class="problem" role="alert">
              {problem.message}
            </p>
          ))}
        {known && (
          <>
            <Tabs tab={tab} onChange={setTab} />
            {names.map((name) => {
              const Panel = tabs[name]
              // All stay, so that nothing is lost on the way to another tab and back.
              return (
                <div
                  key={`${name} ${model}`}
                  role="tabpanel"
                  id={`panel-${name}`}
                  aria-labelledby={`tab-${name}`}
                  hidden={name !== tab}
                >
                  <Panel model={model} maxTokens={maxTokens} />
                </div>
              )
            })}
          </>
        )}
      </main>
    </>
  )
}

function Tabs({ tab, onChange }: { tab: Tab; onChange: (tab: Tab) => void }) {
  const onKeyDown = (event: KeyboardEvent) => {
    const at = names.indexOf(tab)
    const targets: Record<string, number> = {
      ...{ ArrowRight: (at + 1) % names.length, ArrowLeft: (at + names.length - 1) % names.length },
      ...{ Home: 0, End: names.length - 1 },
    }
    const target = names[targets[event.key] ?? -1]
    if (target === undefined) return
    event.preventDefault()
    onChange(target)
    document.querySelector<HTMLElement>(`#tab-${target}`)?.focus()
  }
  return (
    <div class="tabs" role="tablist" aria-label="What to do" onKeyDown={onKeyDown}>
      {names.map((name) => (
        <button
          type="button"
          key={name}
          role="tab"
          id={`tab-${name}`}
          aria-controls={`panel-${name}`}
          aria-selected={name === tab}
          tabIndex={name === tab ? 0 : -1}
          onClick={() => onChange(name)}
        >
          {name}
        </button>
      ))}
    </div>
  )
}

/** Asked for where the server takes keys. */
function Key({ onKey }: { onKey: () => Promise<void> }) {
  const [value, setValue] = useState('')
  const [refused, setRefused] = useState(hasKey())
  return (
    <form
      class="prompt-form key"
      onSubmit={(event) => {
        event.preventDefault()
        setRefused(false) // so that it is said again, of another key
        setKey(value)
        void onKey().then(() => setRefused(true)) // else there is nothing left to see it
      }}
    >
      <label for="key">This server asks for an API key</label>
      <div class="buttons">
        <input
          id="key"
          type="password"
          autocomplete="off"
          aria-invalid={refused}
          value={value}
          onInput={(event) => setValue(event.currentTarget.value)}
        />
        <button type="submit" class="main" disabled={value === ''}>
          Use it
        </button>
      </div>
      {refused && (
        <p class="problem" role="alert">
          The server does not take this key.
        </p>
      )}
    </form>
  )
}

render(<App />, document.querySelector('#app')!)
