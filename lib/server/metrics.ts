import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'

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
  readonly #stalled = new Counter({
    name: 'node_mamba_stalled_total',
    help: 'Streaming clients that were disconnected because they read nothing.',
    registers: this.#registers,
  })
  readonly #tokens = new Counter({
    name: 'node_mamba_tokens_total',
    help: 'Tokens: prompt (computed), cached (known from a session or the prefix cache) and completion (generated).',
    labelNames: ['model', 'kind'],
    registers: this.#registers,
  })

  /** `active` says how many requests are being worked on; it is asked whenever the metrics are read. */
  constructor(active: () => number) {
    collectDefaultMetrics({ register: this.#registry })
    this.#registry.registerMetric(
      new Gauge({
        name: 'node_mamba_active_requests',
        help: 'Requests that are being worked on.',
        registers: [],
        collect() {
          this.set(active())
        },
      }),
    )
  }

  request(route: string, status: number, seconds: number): void {
    this.#requests.inc({ route, status })
    this.#seconds.observe({ route }, seconds)
  }

  firstToken(model: string, seconds: number): void {
    this.#firstToken.observe({ model }, seconds)
  }

  stalled(): void {
    this.#stalled.inc()
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
