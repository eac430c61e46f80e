/** The cosine of each pair; the vectors are of length 1. */
export function similarities(vectors: readonly Float32Array[]): number[][] {
  return vectors.map((a) => vectors.map((b) => dot(a, b)))
}

/**
 * The two directions in which the vectors differ most, as a place for each: principal components, from the matrix of
 * products (as many rows as vectors, fewer than components).
 */
export function map2d(vectors: readonly Float32Array[]): [x: number, y: number][] {
  const mean = new Float64Array(vectors[0]?.length ?? 0)
  for (const vector of vectors) vector.forEach((x, i) => (mean[i]! += x / vectors.length))
  const centered = vectors.map((vector) => Float64Array.from(vector, (x, i) => x - mean[i]!))
  const products = centered.map((a) => Float64Array.from(centered, (b) => dot(a, b)))
  const [x, y] = [component(products), component(products)]
  return vectors.map((_, i) => [x[i]!, y[i]!])
}

/** The first eigenvector times the root of its eigenvalue, by power iteration; it is taken out of the matrix. */
function component(matrix: Float64Array[]): Float64Array {
  let vector = Float64Array.from(matrix, (_, i) => Math.sin(i + 1)) // of no symmetry that the texts could have
  let length = 0
  for (let round = 0; round < 300; round++) {
    const next = Float64Array.from(matrix, (row) => dot(row, vector))
    length = Math.hypot(...next)
    if (length < 1e-12) return new Float64Array(matrix.length)
    vector = next.map((x) => x / length)
  }
  matrix.forEach((row, i) => row.forEach((_, j) => (row[j]! -= length * vector[i]! * vector[j]!)))
  return vector.map((x) => x * Math.sqrt(length))
}

function dot(a: Float32Array | Float64Array, b: Float32Array | Float64Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!
  return sum
}
