import { createHash } from 'node:crypto'
import { MambaError } from '../errors.js'
import type { Session } from '../session.js'
import type { Exchange, ServedModel } from './context.js'
import { sessionKey, type SessionStore } from './session-store.js'

type Served = Pick<ServedModel, 'name' | 'model'>

/** A state that is kept. For a chat, which text it is the state of: its length, and a digest instead of the text. */
interface Snapshot {
  text?: { length: number; digest: string }
  bytes: Uint8Array
}

/** What is kept under a name: the latest state first. */
interface Kept {
  model: string
  snapshots: Snapshot[]
}

/** The sessions of a server: one request at a time goes on with each. */
export class Sessions {
  readonly #store: SessionStore
  readonly #inUse = new Set<string>()

  constructor(store: SessionStore) {
    this.#store = store
  }

  /**
   * Takes a session until the exchange ends.
   *
   * @throws {@link MambaError} `SESSION_BUSY`
   */
  open(exchange: Exchange, caller: string, id: string): Conversation {
    const key = this.#take(caller, id)
    void exchange.ended.then(() => this.#inUse.delete(key))
    return new Conversation(this.#store, key, id)
  }

  /**
   * Forgets a session; whether there was one.
   *
   * @throws {@link MambaError} `SESSION_BUSY`
   */
  async delete(caller: string, id: string): Promise<boolean> {
    const key = this.#take(caller, id)
    try {
      return await this.#store.delete(key)
    } finally {
      this.#inUse.delete(key)
    }
  }

  #take(caller: string, id: string): string {
    const key = sessionKey(caller, id)
    if (this.#inUse.has(key)) {
      throw new MambaError(
        'SESSION_BUSY',
        `the session '${id}' is used by another request, expected one at a time`,
      )
    }
    this.#inUse.add(key)
    return key
  }

  close(): Promise<void> {
    return this.#store.close()
  }
}

/** A session that a request has to itself. What it does is kept by `save` only: a request that fails changes nothing. */
export class Conversation {
  readonly #store: SessionStore
  readonly #key: string
  readonly #id: string

  constructor(store: SessionStore, key: string, id: string) {
    this.#store = store
    this.#key = key
    this.#id = id
  }

  /**
   * The session as it was left, or nothing where there is none.
   *
   * @throws {@link MambaError} `SESSION_MISMATCH` (of another model), `SESSION_INVALID` (damaged)
   */
  async latest(served: Served): Promise<Session | undefined> {
    const bytes = await this.#store.get(this.#key)
    if (!bytes) return undefined
    const kept = unpack(bytes)
    if (!kept)
      throw new MambaError('SESSION_INVALID', `the session '${this.#id}' is damaged; delete it to begin anew`)
    if (kept.model !== served.name) {
      throw new MambaError(
        'SESSION_MISMATCH',
        `the session '${this.#id}' is of the model '${kept.model}', expected one of '${served.name}'`,
      )
    }
    return served.model.restore(kept.snapshots[0]!.bytes)
  }

  /**
   * A session that knows as much of the start of `text` as is kept, and how many characters that is: at worst an empty
   * one. Another model's or a damaged one is of no use, and does no harm: all of the text is there.
   */
  async startOf(text: string, served: Served): Promise<{ session: Session; known: number }> {
    const bytes = await this.#store.get(this.#key)
    const kept = bytes && unpack(bytes)
    if (kept?.model === served.name) {
      for (const snapshot of kept.snapshots) {
        const length = snapshot.text?.length ?? Infinity
        if (length > text.length || digestOf(text.slice(0, length)) !== snapshot.text!.digest) continue
        const session = await served.model.restore(snapshot.bytes).catch(() => undefined)
        if (session) return { session, known: length }
      }
    }
    return { session: served.model.session(), known: 0 }
  }

  /** Keeps these states, the latest first, with the texts that they are of. */
  async save(served: Served, states: { session: Session; text?: string }[]): Promise<void> {
    const snapshots = states.map(({ session, text }) => ({
      ...(text !== undefined && { text: { length: text.length, digest: digestOf(text) } }),
      bytes: session.toBytes(),
    }))
    await this.#store.set(this.#key, pack({ model: served.name, snapshots }))
  }
}

function digestOf(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** Length of the header (u32, little-endian), the header as JSON, the states. */
function pack({ model, snapshots }: Kept): Uint8Array {
  const header = Buffer.from(
    JSON.stringify({ model, snapshots: snapshots.map(({ text, bytes }) => ({ text, size: bytes.length })) }),
  )
  const length = Buffer.alloc(4)
  length.writeUInt32LE(header.length)
  return Buffer.concat([length, header, ...snapshots.map(({ bytes }) => bytes)])
}

/** Nothing where it is damaged; the states themselves are checked by `restore`. */
function unpack(bytes: Uint8Array): Kept | undefined {
  try {
    const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    let offset = 4 + buffer.readUInt32LE(0)
    const { model, snapshots } = JSON.parse(buffer.toString('utf8', 4, offset)) as {
      model: string
      snapshots: { text?: Snapshot['text']; size: number }[]
    }
    const states = snapshots.map(({ text, size }) => {
      const state = { ...(text && { text }), bytes: buffer.subarray(offset, offset + size) }
      offset += size
      return state
    })
    return offset === buffer.length && states.length > 0 ? { model, snapshots: states } : undefined
  } catch {
    return undefined
  }
}
