import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

import { observed, quiet } from './load.mjs'

/** Of all cores; a measurement during which others took more is repeated. */
const mostByOthers = 0.05

/** A program that holds a model, and answers each line (a measurement) with a line of JSON. */
export class Contestant {
  /** Starts it; null when it cannot run this model (it ends before it says what it has loaded). */
  static async start(command, args, env = {}) {
    const child = spawn(command, args, {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, ...env },
    })
    const contestant = new Contestant()
    contestant.child = child
    child.stdin.on('error', () => {}) // it ended: the missing answer says so
    contestant.lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    contestant.info = await contestant.answer()
    return contestant.info && contestant
  }

  async answer() {
    const { value } = await this.lines.next()
    return value === undefined ? null : JSON.parse(value)
  }

  async ask(line) {
    this.child.stdin.write(`${line}\n`)
    const answer = await this.answer()
    if (answer === null) throw new Error(`${this.child.spawnfile} ended at ${line}`)
    return answer
  }

  /** The same on a quiet machine: waits for one, and repeats what was disturbed, twice and half a minute at most. The
   * least disturbed answer, and the share of the cores that others took meanwhile. */
  async measure(line) {
    let best
    for (let attempt = 0; attempt < 3; attempt++) {
      await quiet(10_000)
      const { result, others } = await observed(this.child.pid, () => this.ask(line))
      if (!best || others < best.others) best = { ...result, others }
      if (best.others <= mostByOthers) break
    }
    return best
  }

  async end() {
    const ended = new Promise((resolve) => this.child.once('exit', resolve))
    this.child.stdin.end()
    if (this.child.exitCode === null) await ended
  }
}
