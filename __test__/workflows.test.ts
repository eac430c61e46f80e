import { readFileSync, readdirSync } from 'node:fs'
import test from 'ava'
import { parse } from 'yaml'

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8')
const folder = '.github/workflows'
const { scripts, napi } = JSON.parse(read('package.json')) as {
  scripts: Record<string, string>
  napi: { targets: string[] }
}

interface Workflow {
  on: unknown
  permissions: unknown
  jobs: Record<
    string,
    {
      'runs-on': string
      'timeout-minutes'?: number
      needs?: string | string[]
      strategy?: { matrix: { include?: { target: string; platform: string }[] } }
      steps: { run?: string; uses?: string }[]
    }
  >
}

for (const file of readdirSync(new URL(`../${folder}`, import.meta.url))) {
  test(`${file} is a workflow whose jobs, needs and npm scripts exist`, (t) => {
    const workflow = parse(read(`${folder}/${file}`)) as Workflow
    t.truthy(workflow.on)
    t.truthy(workflow.permissions, 'the token may do no more than the workflow says')
    for (const [name, job] of Object.entries(workflow.jobs)) {
      t.truthy(job['runs-on'], name)
      t.truthy(job['timeout-minutes'], name)
      for (const need of [job.needs ?? []].flat()) t.true(need in workflow.jobs, need)
      for (const step of job.steps) {
        t.true((step.run === undefined) !== (step.uses === undefined), `${name}: one of run and uses`)
        for (const [, script] of (step.run ?? '').matchAll(/npm run ([\w:]+)/g))
          t.true(Object.hasOwn(scripts, script!), script)
      }
    }
  })
}

test('release.yml builds every target of package.json, each into its platform package', (t) => {
  const { jobs } = parse(read(`${folder}/release.yml`)) as Workflow
  const matrix = jobs.build!.strategy!.matrix.include!
  t.deepEqual(matrix.map(({ target }) => target).toSorted(), napi.targets.toSorted())
  const packages = readdirSync(new URL('../npm', import.meta.url))
  t.deepEqual(matrix.map(({ platform }) => platform).toSorted(), packages.toSorted())
})
