// What the reports of GPU runs share: tables in Markdown, charts as SVG.

/** What a run on a GPU printed, an object a line: its rows, and of its machine what a record of them begins with. */
export function measured(text, commit = '') {
  const objects = text
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line))
  const machine = objects.find((row) => row.what === 'machine')
  const { card, driver, copy_tb_s } = machine
  const date = new Date().toISOString().slice(0, 10)
  return {
    machine,
    origin: { date, commit, card, driver, copy_tb_s },
    rows: objects.filter((row) => row !== machine),
  }
}

/** Prints a table. */
export function table(head, rows) {
  console.log(`\n| ${head.join(' | ')} |\n|${head.map(() => '---|').join('')}`)
  for (const row of rows) console.log(`| ${row.join(' | ')} |`)
}

/**
 * Lines as SVG, over logarithmic axes or, with `linear`, over linear ones: series are `{ name, points: [[x, y], …], colour,
 * dashed }`; ticks of x, and of y where it is linear, are given.
 */
export function chart({ title, x, y, series, ticks, linear }) {
  const [width, height, left, top, right, bottom] = [720, 420, 70, 40, 130, 50]
  const colours = ['#1b6ca8', '#d1495b', '#2e8540', '#8a5a00', '#6a3d9a', '#555']
  const all = series.flatMap((one) => one.points)
  const scale = linear ? (v) => v : Math.log
  const range = (values) => [scale(Math.min(...values)), scale(Math.max(...values))]
  const [[x0, x1], [y0, y1]] = [range(all.map(([x]) => x)), range(all.map(([, y]) => y))]
  const atX = (v) => left + ((scale(v) - x0) / (x1 - x0 || 1)) * (width - left - right)
  const atY = (v) => height - bottom - ((scale(v) - y0) / (y1 - y0 || 1)) * (height - top - bottom)
  const parts = []
  const text = (x, y, content, more = '') =>
    parts.push(`<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${content}</text>`)
  text(left, 24, title, 'font-size="15" font-weight="bold"')
  for (const tick of ticks) {
    parts.push(`<path d="M${atX(tick).toFixed(1)} ${top}V${height - bottom}" stroke="#ddd"/>`)
    text(atX(tick), height - bottom + 18, tick, 'text-anchor="middle"')
  }
  const powers = Array.from({ length: 20 }, (_, i) => 10 ** (i - 6))
  const inside = (value) => scale(value) >= y0 && scale(value) <= y1
  for (const value of (linear ?? powers).filter(inside)) {
    parts.push(`<path d="M${left} ${atY(value).toFixed(1)}H${width - right}" stroke="#ddd"/>`)
    text(left - 8, atY(value) + 4, value.toLocaleString('en-US'), 'text-anchor="end"')
  }
  text((left + width - right) / 2, height - 12, x, 'text-anchor="middle"')
  text(0, 0, y, `text-anchor="middle" transform="translate(16 ${(top + height - bottom) / 2}) rotate(-90)"`)
  // Names at the lines' ends, moved apart where they would overlap.
  let lowest = Infinity
  const ends = series
    .map((one, i) => ({
      ...one,
      colour: colours[(one.colour ?? i) % colours.length],
      end: one.points.at(-1),
    }))
    .toSorted((a, b) => a.end[1] - b.end[1])
  for (const { name, points, dashed, colour, end } of ends) {
    const path = points.map(([x, y]) => `${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`).join('L')
    const dash = dashed ? ' stroke-dasharray="5 4"' : ''
    parts.push(`<path d="M${path}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>`)
    for (const [x, y] of points)
      parts.push(`<circle cx="${atX(x).toFixed(1)}" cy="${atY(y).toFixed(1)}" r="3" fill="${colour}"/>`)
    lowest = Math.min(atY(end[1]) + 4, lowest - 15)
    text(atX(end[0]) + 8, lowest, name, `fill="${colour}"`)
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12"><rect width="${width}" height="${height}" fill="#fff"/>${parts.join('\n')}</svg>\n`
}
