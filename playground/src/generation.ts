import { useEffect, useRef, useState } from 'preact/hooks'
import { generate, Refused, type NamedLogprob, type Sampling } from './api.js'

export interface Token extends NamedLogprob {
  /** The likeliest tokens in its place. */
  top: NamedLogprob[]
  /** Put there by hand. */
  chosen?: boolean
}

export interface Generated {
  status: 'empty' | 'running' | 'done' | 'stopped' | 'failed'
  prompt: string
  tokens: Token[]
  /** Tokens of the context, with the prompt's. */
  context: number
  /** Bytes of the session. */
  bytes: number
  /** Tokens that the server read before the first new one. */
  computed: number
  /** Tokens that were generated, per second. */
  rate?: number
  problem?: string
}

const nothing: Generated = { status: 'empty', prompt: '', tokens: [], context: 0, bytes: 0, computed: 0 }

/** Milliseconds between two drawings of what comes in. */
const interval = 40

/** A generation and what can be done with it. */
export function useGeneration(model: string, sampling: Sampling) {
  const [shown, setShown] = useState(nothing)
  // What has come in; it is drawn less often.
  const latest = useRef(nothing)
  const running = useRef<AbortController | undefined>(undefined)
  const state = useRef<{ id: string; model: string; prompt: string } | undefined>(undefined)

  useEffect(() => () => running.current?.abort(), [])

  const change = (part: Partial<Generated>, now = true) => {
    latest.current = { ...latest.current, ...part }
    if (now) setShown(latest.current)
  }

  /** Generates after the prompt and these tokens, which are kept. */
  const run = async (prompt: string, kept: Token[] = []): Promise<void> => {
    running.current?.abort()
    const controller = new AbortController()
    running.current = controller
    const known = state.current
    const request = {
      model,
      prompt,
      tokens: kept.map(({ id }) => id),
      ...(known?.model === model && known.prompt === prompt && { state: known.id }),
    }
    change({ ...nothing, status: 'running', prompt, tokens: kept })
    let drawn = 0
    let made = 0
    try {
      for await (const event of generate(request, sampling, controller.signal)) {
        if (running.current !== controller) return
        if (event.type === 'start') {
          const { context, bytes, computed } = event
          state.current = { id: event.state, model, prompt }
          change({ context, bytes, computed })
        } else if (event.type === 'token') {
          const { id, text, logprob, top } = event
          made++
          const now = performance.now()
          const draw = now - drawn > interval
          if (draw) drawn = now
          const { tokens, context } = latest.current
          change({ tokens: [...tokens, { id, text, logprob, top }], context: context + 1 }, draw)
        } else {
          const { context, bytes, decodeSeconds } = event
          const rate = made > 1 && decodeSeconds > 0 ? { rate: (made - 1) / decodeSeconds } : {}
          change({ status: 'done', context, bytes, ...rate })
        }
      }
    } catch (error) {
      if (running.current !== controller) return
      if (controller.signal.aborted) change({ status: 'stopped' })
      else change({ status: 'failed', problem: error instanceof Refused ? error.message : String(error) })
    }
  }

  const stop = () => running.current?.abort()
  return { generated: shown, run, stop }
}

export type Generation = ReturnType<typeof useGeneration>
