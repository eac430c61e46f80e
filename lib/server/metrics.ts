import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { ServerContext } from './context.js'

/** What Prometheus reads at /metrics, in a registry of its own. */
export class Metrics {
  readonly #registry = new Registry()
  readonly #registers = [this.#registry]
  readonly #requests = new Counter({
    name: 'node_mamba_requests_total',
    help: 'Requests answered, by route and status.',
    labelNames: ['route', 'status'],
    registers: this.#registers,
  })
  readonly #seconds = new Histogram({
    name: 'node_mamba_request_seconds',
    help: 'Seconds from a request to the end of its answer.',
    labelNames: ['route'],
    buckets: [0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300],
    registers: this.#registers,
  })
  readonly #firstToken = new Histogram({
    name: 'node_mamba_first_token_seconds',
    help: 'Seconds from a streaming request to its first token.',
    labelNames: ['model'],
    buckets: [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30],
    registers: this.#registers,
  })
  readonly #tokens = new Counter({
    name: 'node_mamba_tokens_total',
    help: 'Tokens: prompt (computed), cached (known from a session) and completion (generated).',
    labelNames: ['model', 'kind'],
    registers: this.#registers,
  })

  constructor() {
    collectDefaultMetrics({ register: this.#registry })
  }

  /** Adds what is read when it is asked for. */
  observe(context: ServerContext): void {
    const registers = this.#registers
    new Gauge({
      name: 'node_mamba_active_requests',
      help: 'Requests that are being worked on.',
      registers,
      collect() {
        this.set(context.active)
      },
    })
  }

  request(route: string, status: number, seconds: number): void {
    this.#requests.inc({ route, status })
    this.#seconds.observe({ route }, seconds)
  }

  firstToken(model: string, seconds: number): void {
    this.#firstToken.observe({ model }, seconds)
  }

  tokens(model: string, counts: { prompt: number; cached?: number; completion?: number }): void {
    for (const [kind, count] of Object.entries(counts)) this.#tokens.inc({ model, kind }, count)
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  text(): Promise<string> {
    return this.#registry.metrics()
  }
}
