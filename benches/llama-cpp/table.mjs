// What is required of each figure, and the table that shows it.

/** d_model, layers and vocabulary of the published shapes; d_inner is twice d_model, d_state 16. */
const sizes = { '130m': [768, 24, 50280], '370m': [1024, 48, 50280] }

/** Operations of the matrix products for one token: all layers, and the head where each token has logits. */
export function flopsPerToken(shape, measure) {
  const [dModel, layers, vocabulary] = sizes[shape]
  const dInner = 2 * dModel
  const dtRank = dModel / 16
  const layer = dModel * 2 * dInner + dInner * (dtRank + 2 * 16) + dtRank * dInner + dInner * dModel
  return 2 * (layers * layer + (measure.startsWith('decode') ? vocabulary * dModel : 0))
}

/** The least ratio of ours to llama.cpp's, and for one sequence the share of the read bandwidth that does as well. */
export function required({ measure, type }, flags) {
  if (measure === 'prefill512') {
    if (type === 'f32') return { ratio: 2.5 }
    if (type === 'q4_k') return null
    return { ratio: flags.includes('amx_tile') ? 6 : 3 }
  }
  if (measure === 'decode1') return { ratio: 1.3, shareOfBandwidth: 0.85 }
  if (measure === 'decode32') return { ratio: 3 }
  if (measure.startsWith('embed') && type === 'f32') return { ratio: 3.5 }
  return null
}

/** Whether a row meets what is required of it; null where nothing is. */
export function meets(row) {
  if (!row.required || row.ratio === undefined) return null
  const { ratio, shareOfBandwidth = Infinity } = row.required
  return row.ratio >= ratio || row.ours.weightGBs / row.machine.readGBs >= shareOfBandwidth
}

/** Embeddings, our best type against llama.cpp's best (and against node-llama-cpp's): required 6x. */
export function summary(rows, nodeRows) {
  const groups = {}
  for (const row of rows.filter((row) => row.measure.startsWith('embed'))) {
    ;(groups[`${row.shape} ${row.threads} ${row.measure}`] ??= []).push(row)
  }
  return Object.values(groups).map((group) => {
    const { shape, threads, measure } = group[0]
    const most = (candidates, rate) =>
      candidates
        .map((row) => ({ type: row.type, textsPerSecond: rate(row) }))
        .reduce((a, b) => (a.textsPerSecond >= b.textsPerSecond ? a : b))
    const ours = most(group, (row) => row.ours.best)
    const theirs = most(group, (row) => row.theirs.best)
    const inNode = nodeRows.filter(
      (row) => row.shape === shape && row.threads === threads && row.measure === measure,
    )
    const best = { shape, threads, measure, ours, theirs, ratio: ours.textsPerSecond / theirs.textsPerSecond }
    if (inNode.length > 0) {
      best.nodeLlamaCpp = most(inNode, (row) => row.best)
      best.ratioToNodeLlamaCpp = ours.textsPerSecond / best.nodeLlamaCpp.textsPerSecond
    }
    return { ...best, required: { ratio: 6 } }
  })
}

/** A Markdown table of the record's ratios; what falls short is in bold. */
export function table({ rows, summary: bests }) {
  const number = (x, digits = 0) => (x === undefined || x === null ? '' : x.toFixed(digits))
  const lines = rows.map((row) => {
    const passed = meets(row)
    const ratio = row.ratio === undefined ? '' : `${row.ratio.toFixed(2)}x`
    const wanted = row.required
      ? `${row.required.ratio}x${row.required.shareOfBandwidth ? ` or ${row.required.shareOfBandwidth * 100} % of GB/s` : ''}`
      : ''
    const decode = row.measure.startsWith('decode')
    return [
      row.shape,
      row.type,
      row.threads,
      row.others > 0.05 ? `${row.measure} (busy: ${Math.round(row.others * 100)} %)` : row.measure,
      number(row.ours.best, row.ours.best < 100 ? 1 : 0),
      number(row.theirs?.best, row.theirs?.best < 100 ? 1 : 0),
      passed === false ? `**${ratio}**` : ratio,
      wanted,
      `${number(row.ours.gflops)} / ${number(row.machine.gemmGflops)}`,
      decode ? `${number(row.ours.weightGBs, 1)} / ${number(row.machine.readGBs, 1)}` : '',
    ]
  })
  for (const { shape, threads, measure, ours, theirs, nodeLlamaCpp, ratio, ratioToNodeLlamaCpp } of bests) {
    const against = (who, than) => [
      shape,
      `${ours.type} : ${who.type}`,
      threads,
      measure,
      number(ours.textsPerSecond, 1),
      number(who.textsPerSecond, 1),
      than < 6 ? `**${than.toFixed(2)}x**` : `${than.toFixed(2)}x`,
      '6x',
      '',
      who === nodeLlamaCpp ? 'node-llama-cpp' : '',
    ]
    lines.push(against(theirs, ratio))
    if (nodeLlamaCpp) lines.push(against(nodeLlamaCpp, ratioToNodeLlamaCpp))
  }
  const header = ['shape', 'type', 'threads', 'measure', 'ours', 'llama.cpp', 'ratio', 'required']
  header.push('GFLOP/s / gemm', 'GB/s / read')
  return [header, header.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`).join('\n')
}
