import { connect, type Socket } from 'node:net'
import type { ExecutionContext } from 'ava'
import { ChatTemplate, type Mamba } from 'node-mamba'
import { createApp, serve, type AppOptions, type ServeOptions } from 'node-mamba/server'

/** Turns as plain lines, so that a model that has no template of its own can be talked to. */
export const plainTemplate =
  '{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}'

type Options<T> = Partial<T> & { models?: AppOptions['models'] }

async function withDefaults(model: Mamba, options: Options<AppOptions>): Promise<AppOptions> {
  const { models = { novels: model } } = options
  const chatTemplates = 'novels' in models && { novels: await ChatTemplate.from(plainTemplate) }
  return { ...(chatTemplates && { chatTemplates }), ...options, models }
}

/** What an app answers to a request, without a network. */
export interface Answer {
  status: number
  headers: Headers
  // The tests look into whatever it is.
  // oxlint-disable-next-line typescript/no-explicit-any
  body: any
}

/** An app that is closed when the test ends. */
export async function testApp(t: ExecutionContext, model: Mamba, options: Options<AppOptions> = {}) {
  const { app, close } = await createApp(await withDefaults(model, options))
  t.teardown(() => close(0))
  const send = async (path: string, init?: RequestInit): Promise<Answer> => {
    const response = await app.request(path, init)
    const text = await response.text()
    const isJson = response.headers.get('content-type')?.startsWith('application/json')
    return { status: response.status, headers: response.headers, body: isJson ? JSON.parse(text) : text }
  }
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    send(path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body),
    })
  return { app, send, post }
}

/** A server on a port of its own that is closed when the test ends. */
export async function testServer(t: ExecutionContext, model: Mamba, options: Options<ServeOptions> = {}) {
  const server = await serve({ port: 0, drainSeconds: 0, ...(await withDefaults(model, options)) })
  t.teardown(() => server.close())
  return server
}

/** The data of server-sent events; the last one is '[DONE]'. */
export function events(text: string) {
  return (
    text
      .split('\n\n')
      .filter((block) => block !== '')
      .map((block) => block.replace(/^data: /, ''))
      // oxlint-disable-next-line typescript/no-explicit-any
      .map((data) => (data === '[DONE]' ? data : (JSON.parse(data) as any)))
  )
}

/** A connection to write a request to by hand. */
export async function open(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {}) // the server may cut it
  await new Promise((resolve) => socket.once('connect', resolve))
  return socket
}

/** A POST as it goes over the wire. */
export function raw(path: string, body: unknown): string {
  const text = JSON.stringify(body)
  return (
    `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n` +
    `Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
  )
}

/** Waits until something holds; a minute at most. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await holds()) return
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  throw new Error('it did not come to hold within a minute')
}

/** A metric without labels. */
export async function metric(url: string, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  return Number(
    text
      .split('\n')
      .find((line) => line.startsWith(`${name} `))!
      .split(' ')[1],
  )
}
