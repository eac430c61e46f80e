// Small checkpoints with random weights, written in every format that can be loaded.
import { openSync, closeSync, mkdirSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'

/** The part of config.json that says how large the model is. */
export interface Shape {
  d_model: number
  n_layer: number
  vocab_size: number
  ssm_cfg?: { d_state: number }
}

/** A model that loads in no time. */
export const tiny: Shape = { d_model: 16, n_layer: 2, vocab_size: 64 }

export interface Tensor {
  name: string
  shape: number[]
  data: Float32Array
}

/** Random tensors of a model with d_conv 4, expand 2, a tied head, and d_state 16 unless the shape says otherwise. */
export function randomTensors({ d_model, n_layer, vocab_size, ssm_cfg }: Shape): Tensor[] {
  const [d_inner, d_conv, dt_rank] = [2 * d_model, 4, Math.ceil(d_model / 16)]
  const d_state = ssm_cfg?.d_state ?? 16
  let seed = 1
  // The constants of Numerical Recipes; from -0.1 to 0.1.
  const random = () => ((seed = (seed * 1664525 + 1013904223) >>> 0) / 2 ** 32 - 0.5) / 5
  const block = Float32Array.from({ length: 1 << 16 }, random)
  const tensor = (name: string, ...shape: number[]): Tensor => {
    const size = shape.reduce((a, b) => a * b)
    const data = new Float32Array(size)
    // Each begins elsewhere in the block, so that no two are equal.
    for (let i = 0, from = Math.floor((random() + 0.1) * 1000); i < size; from = 0) {
      const part = block.subarray(from, from + size - i)
      data.set(part, i)
      i += part.length
    }
    return { name, shape, data }
  }
  const tensors = [tensor('backbone.embedding.weight', vocab_size, d_model)]
  for (let i = 0; i < n_layer; i++) {
    const layer = `backbone.layers.${i}`
    tensors.push(
      tensor(`${layer}.norm.weight`, d_model),
      tensor(`${layer}.mixer.in_proj.weight`, 2 * d_inner, d_model),
      tensor(`${layer}.mixer.conv1d.weight`, d_inner, 1, d_conv),
      tensor(`${layer}.mixer.conv1d.bias`, d_inner),
      tensor(`${layer}.mixer.x_proj.weight`, dt_rank + 2 * d_state, d_inner),
      tensor(`${layer}.mixer.dt_proj.weight`, d_inner, dt_rank),
      tensor(`${layer}.mixer.dt_proj.bias`, d_inner),
      tensor(`${layer}.mixer.A_log`, d_inner, d_state),
      tensor(`${layer}.mixer.D`, d_inner),
      tensor(`${layer}.mixer.out_proj.weight`, d_model, d_inner),
    )
  }
  tensors.push(tensor('backbone.norm_f.weight', d_model))
  return tensors
}

export function writeConfig(folder: string, config: object): void {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
}

function bytesOf({ data }: Tensor, dtype: 'F32' | 'BF16'): Uint8Array {
  if (dtype === 'F32') return new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  // The upper halves of the floats, cut off: good enough for random values.
  const halves = Uint16Array.from(
    new Uint32Array(data.buffer, data.byteOffset, data.length),
    (bits) => bits >>> 16,
  )
  return new Uint8Array(halves.buffer)
}

export function writeSafetensors(file: string, tensors: Tensor[], dtype: 'F32' | 'BF16' = 'F32'): void {
  let end = 0
  const entries = tensors.map((tensor) => {
    const begin = end
    end += tensor.data.length * (dtype === 'F32' ? 4 : 2)
    return [tensor.name, { dtype, shape: tensor.shape, data_offsets: [begin, end] }]
  })
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  const out = openSync(file, 'w')
  writeSync(out, length)
  writeSync(out, header)
  for (const tensor of tensors) writeSync(out, bytesOf(tensor, dtype))
  closeSync(out)
}

/** Two files of weights and the index that says which tensor is where. */
export function writeShards(folder: string, tensors: Tensor[]): void {
  const half = Math.ceil(tensors.length / 2)
  const weight_map: Record<string, string> = {}
  for (const [i, shard] of [tensors.slice(0, half), tensors.slice(half)].entries()) {
    const name = `model-0000${i + 1}-of-00002.safetensors`
    writeSafetensors(join(folder, name), shard)
    for (const tensor of shard) weight_map[tensor.name] = name
  }
  writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }))
}

/** As `torch.save(state_dict)` writes it. `call` is a global to call instead, as a hostile file would. */
export function writePytorch(file: string, tensors: Tensor[], call?: { module: string; name: string }): void {
  const text = (value: string) => {
    const bytes = Buffer.from(value)
    return Buffer.concat([Buffer.from([0x58]), int32(bytes.length), bytes]) // BINUNICODE
  }
  const int = (value: number) => Buffer.concat([Buffer.from('J'), int32(value)])
  const global = (module: string, name: string) => Buffer.from(`c${module}\n${name}\n`)
  const tuple = (...items: Buffer[]) => Buffer.concat([Buffer.from('('), ...items, Buffer.from('t')])
  const reduce = (callee: Buffer, args: Buffer) => Buffer.concat([callee, args, Buffer.from('R')])
  const emptyDict = () => reduce(global('collections', 'OrderedDict'), tuple())

  const items = tensors.map(({ name, shape, data }, i) => {
    const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1))
    const storage = tuple(
      text('storage'),
      global('torch', 'FloatStorage'),
      text(String(i)),
      text('cpu'),
      int(data.length),
    )
    const value = reduce(
      global('torch._utils', '_rebuild_tensor_v2'),
      tuple(
        Buffer.concat([storage, Buffer.from('Q')]), // BINPERSID
        int(0),
        tuple(...shape.map(int)),
        tuple(...strides.map(int)),
        Buffer.from([0x89]), // NEWFALSE: requires_grad
        emptyDict(), // backward hooks
      ),
    )
    return Buffer.concat([text(name), value])
  })
  if (call)
    items.push(Buffer.concat([text('x'), reduce(global(call.module, call.name), tuple(text('echo')))]))
  const pickle = Buffer.concat([
    Buffer.from([0x80, 2]),
    emptyDict(),
    Buffer.from('('),
    ...items,
    Buffer.from('u.'),
  ])
  writeZip(file, [
    ['archive/data.pkl', pickle],
    ...tensors.map((tensor, i) => [`archive/data/${i}`, bytesOf(tensor, 'F32')] as [string, Uint8Array]),
    ['archive/version', Buffer.from('3\n')],
  ])
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32LE(value)
  return bytes
}

/** A zip archive without compression. */
function writeZip(file: string, entries: [name: string, content: Uint8Array][]): void {
  const parts: Uint8Array[] = []
  const directory: Buffer[] = []
  let offset = 0
  for (const [name, content] of entries) {
    const fields = Buffer.alloc(26)
    fields.writeUInt16LE(20, 0) // version needed
    fields.writeUInt32LE(crc32(content), 10)
    fields.writeUInt32LE(content.length, 14)
    fields.writeUInt32LE(content.length, 18)
    fields.writeUInt16LE(name.length, 22)
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), fields, Buffer.from(name)])
    parts.push(local, content)
    const tail = Buffer.alloc(14)
    tail.writeUInt32LE(offset, 10)
    directory.push(Buffer.concat([Buffer.from('PK\x01\x02\x14\x00'), fields, tail, Buffer.from(name)]))
    offset += local.length + content.length
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0)
  const end = Buffer.alloc(22)
  end.write('PK\x05\x06', 'latin1')
  end.writeUInt16LE(entries.length, 8)
  end.writeUInt16LE(entries.length, 10)
  end.writeUInt32LE(size, 12)
  end.writeUInt32LE(offset, 16)
  writeFileSync(file, Buffer.concat([...parts, ...directory, end]))
}
