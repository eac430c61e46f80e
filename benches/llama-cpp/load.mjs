// How busy the machine is with other things. It matters: threads that wait for each other at a barrier, as llama.cpp's
// do some hundred times a token, become ten times slower when one of them loses its core now and then.
import { existsSync, readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { setTimeout } from 'node:timers/promises'

const hertz = 100 // of the kernel's counts
const numbers = (text) => text.trim().split(/\s+/).map(Number)

/** Seconds of processor time since boot that were not idle, of all cores together; 0 where there is no /proc. */
function busySeconds() {
  if (!existsSync('/proc/stat')) return 0
  const [user, nice, system, , , irq, softirq, steal] = numbers(
    readFileSync('/proc/stat', 'utf8').slice(4, 200),
  )
  return (user + nice + system + irq + softirq + steal) / hertz
}

/** Those of one process. */
function secondsOf(pid) {
  if (!existsSync(`/proc/${pid}/stat`)) return 0
  const [, , , , , , , , , , , user, system] = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .split(') ')[1]
    .split(' ')
  return (Number(user) + Number(system)) / hertz
}

/** What a process does for us, and the share of all cores that others took meanwhile. */
export async function observed(pid, work) {
  const [busy, own, began] = [busySeconds(), secondsOf(pid), performance.now()]
  const result = await work()
  const seconds = (performance.now() - began) / 1000
  const others = busySeconds() - busy - (secondsOf(pid) - own)
  // Counts are of 10 ms: less than three of them mean nothing.
  return { result, others: others < 0.03 ? 0 : others / seconds / cpus().length }
}

/** Waits until others take less than a twentieth of the cores, `limit` milliseconds at most. */
export async function quiet(limit) {
  for (const began = performance.now(); performance.now() - began < limit;) {
    if ((await observed(0, () => setTimeout(200))).others < 0.05) return
  }
}
