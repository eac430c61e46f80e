// node scripts/screenshots.mjs [folder]: pictures of the playground, light and dark, as docs/images/ has them. Needs
// Chromium (on Debian: apt-get install chromium) and `npm run build`.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { chromium } from 'playwright-core'

const folder = process.argv[2] ?? 'docs/images'
const all = process.argv[2] !== undefined // for looking at; the README shows two
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium'
mkdirSync(folder, { recursive: true })

const server = spawn(process.execPath, ['dist/lib/cli/main.js', 'serve', '--port=0', '--json'], {
  stdio: ['ignore', 'pipe', 'inherit'],
})
const { url } = JSON.parse(String((await once(server.stdout, 'data'))[0]))
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
try {
  for (const colorScheme of ['light', 'dark']) {
    const page = await browser.newPage({ viewport: { width: 1200, height: 860 }, colorScheme })
    page.on('console', (message) => console.log(message.text()))
    const shoot = async (name) => {
      await page.screenshot({ path: `${folder}/playground-${name}${colorScheme}.png` })
    }
    await page.goto(url)
    await page.getByLabel('Seed').first().fill('11')
    await page.getByRole('button', { name: 'Generate' }).click()
    await page.getByText('Text: finished').waitFor({ state: 'attached' })
    await page.locator('.token').nth(8).click()
    await shoot('')
    if (!all) continue
    await page.getByRole('tab', { name: 'Compare' }).click()
    await page.getByRole('tabpanel', { name: 'Compare' }).getByRole('button', { name: 'Generate' }).click()
    await page.getByText('B: finished').waitFor({ state: 'attached' })
    await shoot('compare-')
    await page.getByRole('tab', { name: 'Embed' }).click()
    await page.getByRole('button', { name: 'Embed' }).click()
    await page.locator('.map').waitFor()
    await shoot('embed-')
    await page.setViewportSize({ width: 400, height: 800 })
    await page.getByRole('tab', { name: 'Write' }).click()
    await shoot('narrow-')
  }
} finally {
  await browser.close()
  server.kill('SIGINT')
}
