import createCompletion from '@bomb.sh/tab/commander'
import { Command, CommanderError } from 'commander'
import { version } from '../diagnose.js'
import { addExamples } from './arguments.js'
import { benchCommand } from './bench.js'
import { chatCommand } from './chat.js'
import { convertCommand } from './convert.js'
import { doctorCommand } from './doctor.js'
import { embedCommand } from './embed.js'
import { inspectCommand } from './inspect.js'
import { runCommand } from './run.js'
import { scoreCommand } from './score.js'
import { serveCommand } from './serve.js'
import { styled } from './terminal.js'
import { trainCommand } from './train.js'

/** The whole command line. */
export function createProgram(): Command {
  const program = new Command('node-mamba')
    .description('Runs Mamba language models on this machine.')
    .exitOverride()
    .showHelpAfterError('node-mamba <command> --help says more.')
    .configureHelp({ styleTitle: (title) => styled(process.stdout, 'bold', title) })
    .helpCommand(false)
    .helpOption('-h, --help', 'what it does, and examples')
    .option('-V, --version', "the package's version")
    .on('option:version', () => {
      process.stdout.write(`${version()}\n`)
      throw new CommanderError(0, 'commander.version', version()) // not exit, which need not wait for a pipe
    })
  for (const command of [
    runCommand(),
    chatCommand(),
    embedCommand(),
    scoreCommand(),
    convertCommand(),
    inspectCommand(),
    serveCommand(),
    trainCommand(),
    benchCommand(),
    doctorCommand(),
  ]) {
    program.addCommand(command.copyInheritedSettings(program))
  }
  createCompletion(program, { completionCommandName: 'completion' })
  const completion = program.commands.find((command) => command.name() === 'completion')
  addExamples(completion!.description('prints the script that completes commands and options in a shell'), {
    'In every new shell:':
      "echo 'source <(node-mamba completion bash)' >> ~/.bashrc\n" +
      "  echo 'source <(node-mamba completion zsh)' >> ~/.zshrc\n" +
      '  node-mamba completion fish > ~/.config/fish/completions/node-mamba.fish',
  })
  return program.addHelpText(
    'after',
    `
A model is 'default', a folder ('./mamba-130m') or a weights file in one.
Exit status: 0 done, 1 failed (CODE: message on standard error), 2 called the wrong way, 130 after Ctrl-C.

Begin with:
  node-mamba run 'It was a dark and stormy night'
  node-mamba <command> --help`,
  )
}
