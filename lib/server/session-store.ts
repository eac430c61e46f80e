import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Redis } from 'ioredis'
import { MambaError } from '../errors.js'
import { needPeers } from '../peers.js'
import { toPath } from '../source.js'

/** Where a server keeps its sessions. Keys are hexadecimal digests. */
export interface SessionStore {
  get(key: string): Promise<Uint8Array | undefined>
  set(key: string, value: Uint8Array): Promise<void>
  /** Whether there was one. */
  delete(key: string): Promise<boolean>
  close(): Promise<void>
}

/** What is kept, oldest use first, and how much of it. */
class Ledger {
  readonly #sizes = new Map<string, number>()
  readonly #maxBytes: number
  #bytes = 0

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  used(key: string): void {
    const size = this.#sizes.get(key)
    if (size === undefined) return
    this.#sizes.delete(key)
    this.#sizes.set(key, size)
  }

  remove(key: string): boolean {
    this.#bytes -= this.#sizes.get(key) ?? 0
    return this.#sizes.delete(key)
  }

  /** Adds one, and gives those that have to go for it; itself, where it alone is too large. */
  add(key: string, size: number): string[] {
    this.remove(key)
    this.#sizes.set(key, size)
    this.#bytes += size
    const gone: string[] = []
    for (const oldest of this.#sizes.keys()) {
      if (this.#bytes <= this.#maxBytes) break
      gone.push(oldest)
      this.remove(oldest)
    }
    return gone
  }
}

/** Sessions in memory: those used last, up to `maxBytes` (default: 256 MiB). */
export class MemorySessions implements SessionStore {
  readonly #values = new Map<string, Uint8Array>()
  readonly #ledger: Ledger

  constructor({ maxBytes = 256 * 2 ** 20 }: { maxBytes?: number } = {}) {
    this.#ledger = new Ledger(maxBytes)
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    this.#ledger.used(key)
    return this.#values.get(key)
  }

  async set(key: string, value: Uint8Array): Promise<void> {
    this.#values.set(key, value)
    for (const gone of this.#ledger.add(key, value.length)) this.#values.delete(gone)
  }

  async delete(key: string): Promise<boolean> {
    this.#values.delete(key)
    return this.#ledger.remove(key)
  }

  async close(): Promise<void> {
    this.#values.clear()
  }
}

const ending = '.session'
const unfinished = `${ending}.new`
/** What the store has written; whatever else is in the folder is somebody's. */
const own = /^[0-9a-f]{64}\.session(\.new)?$/

/**
 * Sessions as files of a folder of their own: those used last, up to `maxBytes` (default: 4 GiB). They outlive the
 * server. A file's name is a digest, so no name of a session can lead out of the folder.
 */
export class DiskSessions implements SessionStore {
  readonly #folder: string
  readonly #ledger: Ledger
  #ready: Promise<void> | undefined

  constructor(folder: string | URL, { maxBytes = 4 * 2 ** 30 }: { maxBytes?: number } = {}) {
    this.#folder = toPath(folder)
    this.#ledger = new Ledger(maxBytes)
  }

  #file(key: string): string {
    return join(this.#folder, key + ending)
  }

  /** Makes the folder, or takes in what an earlier run left there. */
  #open(): Promise<void> {
    return (this.#ready ??= attempt(this.#folder, async () => {
      await mkdir(this.#folder, { recursive: true, mode: 0o700 })
      const all = (await readdir(this.#folder)).filter((name) => own.test(name))
      // What a crash left half-written.
      for (const name of all.filter((name) => name.endsWith(unfinished)))
        await rm(join(this.#folder, name), { force: true })
      const names = all.filter((name) => name.endsWith(ending))
      const files = await Promise.all(
        names.map(async (name) => ({ name, ...(await stat(join(this.#folder, name))) })),
      )
      files.sort((a, b) => a.mtimeMs - b.mtimeMs)
      for (const { name, size } of files) await this.#add(name.slice(0, -ending.length), size)
    }).catch((error: unknown) => {
      this.#ready = undefined // the next one may find it mended
      throw error
    }))
  }

  async #add(key: string, size: number): Promise<void> {
    for (const gone of this.#ledger.add(key, size)) await rm(this.#file(gone), { force: true })
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    await this.#open()
    const file = this.#file(key)
    return attempt(file, async () => {
      try {
        const value = await readFile(file)
        this.#ledger.used(key)
        const now = new Date()
        await utimes(file, now, now)
        return value
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
        throw error
      }
    })
  }

  async set(key: string, value: Uint8Array): Promise<void> {
    await this.#open()
    const file = this.#file(key)
    const half = join(this.#folder, key + unfinished)
    await attempt(file, async () => {
      // Whatever happens, the file holds the new session or what it held before.
      await writeFile(half, value, { mode: 0o600, flush: true })
      await rename(half, file)
      await this.#add(key, value.length)
    })
  }

  async delete(key: string): Promise<boolean> {
    await this.#open()
    await attempt(this.#file(key), () => rm(this.#file(key), { force: true }))
    return this.#ledger.remove(key)
  }

  async close(): Promise<void> {}
}

/**
 * Sessions in Redis, so that several servers share them: each for `seconds` after its last use (default: a day). Needs
 * the package `ioredis`. A conversation must not be continued on two servers at once: the later answer would win.
 */
export class RedisSessions implements SessionStore {
  readonly #url: string
  readonly #seconds: number
  readonly #prefix: string
  #client: Promise<Redis> | undefined

  constructor(url: string, { seconds = 86_400, prefix = 'node-mamba:' } = {}) {
    needPeers('keeping sessions in Redis', ['ioredis'])
    this.#url = url
    this.#seconds = seconds
    this.#prefix = prefix
  }

  #run<T>(work: (client: Redis, name: (key: string) => string) => Promise<T>): Promise<T> {
    return attempt('Redis', async () => {
      this.#client ??= import('ioredis').then(({ Redis }) => {
        // A request waits a little for a lost server, not for ever.
        const client = new Redis(this.#url, { maxRetriesPerRequest: 2, connectTimeout: 2000 })
        client.on('error', () => {}) // the command that fails says it
        return client
      })
      return work(await this.#client, (key) => this.#prefix + key)
    })
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    return (
      (await this.#run((client, name) => client.getexBuffer(name(key), 'EX', this.#seconds))) ?? undefined
    )
  }

  async set(key: string, value: Uint8Array): Promise<void> {
    const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
    await this.#run((client, name) => client.set(name(key), bytes, 'EX', this.#seconds))
  }

  async delete(key: string): Promise<boolean> {
    return (await this.#run((client, name) => client.del(name(key)))) > 0
  }

  async close(): Promise<void> {
    if (this.#client) (await this.#client).disconnect()
    this.#client = undefined
  }
}

/** The key of a caller's session: callers do not see each other's, and nothing of the name is left in it. */
export function sessionKey(caller: string, id: string): string {
  return createHash('sha256').update(`${caller}\n${id}`).digest('hex')
}

async function attempt<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    const message = `the sessions cannot be reached: ${what}: ${(cause as Error).message}`
    throw new MambaError('SESSION_STORE_UNAVAILABLE', message, { cause })
  }
}
