import { Command } from 'commander'
import { diagnose, type Diagnosis } from '../diagnose.js'
import { MambaError } from '../errors.js'
import { Mamba, type Device } from '../model.js'
import { addExamples } from './arguments.js'
import { interrupted } from './interrupt.js'
import { print, table } from './terminal.js'

/** What a device did when it was tried. */
interface Trial {
  /** Left out where it was not tried. */
  works?: boolean
  /** What went wrong, or why it was not tried. */
  reason?: string
}

/** `node-mamba doctor`. */
export function doctorCommand(): Command {
  const command = new Command('doctor')
    .summary('says what runs on this machine, and what keeps a GPU from being used')
    .description(
      'Says what runs on this machine, tries the default model on every device that is there, and says what keeps ' +
        'a GPU from being used. The exit status is 1 if models do not run on the CPU.',
    )
    .option('--json', 'the same for programs')
    .action(async ({ json }: { json?: boolean }) => {
      const diagnosis = diagnose()
      const tried = new Map<Device, Trial>()
      for (const device of diagnosis.devices) tried.set(device, await tryOut(device))
      const whole = { ...diagnosis, tried: Object.fromEntries(tried) }
      await print(`${json ? JSON.stringify(whole, null, 2) : report(diagnosis, tried)}\n`)
      if (tried.get('cpu')?.works === false) process.exitCode = 1
    })
  return addExamples(command, { 'For a bug report:': 'node-mamba doctor --json' })
}

/** One token of the default model, where that is installed. */
async function tryOut(device: Device): Promise<Trial> {
  try {
    const model = await Mamba.load('default', { device, signal: interrupted })
    try {
      await model.complete('The', { maxTokens: 1, signal: interrupted })
    } finally {
      await model.dispose()
    }
    return { works: true }
  } catch (error) {
    if (!(error instanceof MambaError) || interrupted.aborted) throw error
    const reason = `${error.code}: ${error.message}`
    return error.code === 'MODEL_NOT_INSTALLED' ? { reason } : { works: false, reason }
  }
}

function report(diagnosis: Diagnosis, tried: Map<Device, Trial>): string {
  const { version, node, platform, arch, binary, simd, processors, notes, cuda } = diagnosis
  const { driver, device, libraries } = cuda
  const gigabytes = device && (device.memoryBytes / 2 ** 30).toFixed(1)
  const gpu = device && `${device.name}, compute capability ${device.computeCapability}, ${gigabytes} GiB`
  const rows: [string, string | undefined][] = [
    ['node-mamba', `${version}, Node ${node}, ${platform} ${arch}`],
    ['binary', binary],
    ['processor', `${processors} threads, ${simd}`],
    ...notes.map((note) => ['', note] as [string, string]),
    ['CPU', outcome(tried.get('cpu'))],
    ['driver', driver],
    ['GPU', gpu],
    ...libraries.map((file) => ['library', file] as [string, string]),
    ['CUDA build', cuda.binary],
    ['CUDA', cuda.available ? outcome(tried.get('cuda')) : `not available, ${cuda.code}`],
    ['', cuda.reason],
  ]
  return table(rows)
}

function outcome(trial: Trial | undefined): string {
  const said = { true: 'works', false: 'does not work', undefined: 'not tried' }[`${trial?.works}`]
  return `${said}${trial?.reason ? ` (${trial.reason})` : ''}`
}
