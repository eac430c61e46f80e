// What the page asks the server.

export interface Model {
  name: string
  device: string
  dtype: string
  parameters: number
  dimensions: number
}

export interface NamedLogprob {
  id: number
  text: string
  logprob: number
}

/** One event of a generation; see lib/server/playground.ts. */
export type GenerationEvent =
  | { type: 'start'; state: string; computed: number; context: number; bytes: number }
  | ({ type: 'token'; top: NamedLogprob[] } & NamedLogprob)
  | { type: 'end'; finishReason: 'stop' | 'length'; decodeSeconds: number; context: number; bytes: number }

export interface Sampling {
  temperature: number
  top_p: number
  top_k: number
  min_p: number
  repetition_penalty: number
  max_tokens: number
  /** Empty: another one each time. */
  seed: string
}

/** What the server refused, in its words. */
export class Refused extends Error {
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

// Kept for the tab's life, and nowhere else.
let key = sessionStorage.getItem('key') ?? ''

export const hasKey = () => key !== ''

export function setKey(value: string): void {
  key = value
  sessionStorage.setItem('key', value)
}

async function ask(path: string, body?: object, signal?: AbortSignal): Promise<Response> {
  const response = await fetch(path, {
    method: body ? 'POST' : 'GET',
    headers: {
      ...(body && { 'content-type': 'application/json' }),
      ...(key !== '' && { authorization: `Bearer ${key}` }),
    },
    ...(body && { body: JSON.stringify(body) }),
    ...(signal && { signal }),
  }).catch((error: unknown) => {
    if (signal?.aborted) throw error
    throw new Refused(0, 'The server does not answer. Is node-mamba serve still running?')
  })
  if (response.ok) return response
  const failure = (await response.json().catch(() => undefined)) as
    { error?: { message?: string } } | undefined
  throw new Refused(response.status, failure?.error?.message ?? `The server answered ${response.status}.`)
}

export async function listModels(): Promise<{ models: Model[]; maxTokens: number }> {
  return (await ask('playground/api/models')).json() as Promise<{ models: Model[]; maxTokens: number }>
}

export async function* generate(
  request: { model: string; prompt: string; state?: string; tokens: number[] },
  { seed, ...sampling }: Sampling,
  signal: AbortSignal,
): AsyncGenerator<GenerationEvent> {
  const body = { ...request, ...sampling, ...(seed !== '' && { seed: Number(seed) }) }
  const response = await ask('playground/api/generate', body, signal)
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    const events = (rest + value).split('\n\n')
    rest = events.pop()!
    for (const line of events) {
      const data = JSON.parse(line.replace(/^data: /, '')) as GenerationEvent | { error: { message: string } }
      if ('error' in data) throw new Refused(500, data.error.message)
      yield data
    }
  }
}

export async function embed(model: string, texts: string[]): Promise<Float32Array[]> {
  const response = await ask('v1/embeddings', { model, input: texts, encoding_format: 'base64' })
  const { data } = (await response.json()) as { data: { embedding: string }[] }
  return data.map(({ embedding }) => {
    const bytes = Uint8Array.from(atob(embedding), (character) => character.charCodeAt(0))
    return new Float32Array(bytes.buffer)
  })
}
