import { defineConfig } from 'vite'

export default defineConfig({
  base: './', // wherever the app is mounted
  build: { outDir: '../dist/playground', emptyOutDir: true, target: 'es2022', modulePreload: false },
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  // With `vite playground` while working on the page; `node-mamba serve` answers.
  server: { proxy: { '/v1': 'http://127.0.0.1:8000', '/playground': 'http://127.0.0.1:8000' } },
})
