"""Writes a Mamba checkpoint of the official format (f32) as a GGUF, and quantizes it.

    python convert.py FOLDER TOKENIZER|- TYPE [TYPE...]

FOLDER holds config.json and model.safetensors; FOLDER/f32.gguf, FOLDER/q8_0.gguf ... are written where missing.
Types are f32, bf16, f16, q8_0 and q4_k. TOKENIZER is a byte-level BPE tokenizer.json; '-' makes a vocabulary of as
many meaningless tokens.
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np

TYPES = {
    'bf16': llama.LLAMA_FTYPE_MOSTLY_BF16,
    'f16': llama.LLAMA_FTYPE_MOSTLY_F16,
    'q8_0': llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    'q4_k': llama.LLAMA_FTYPE_MOSTLY_Q4_K_S,
}
LAYER = {
    'norm.weight': 'attn_norm.weight',
    'mixer.in_proj.weight': 'ssm_in.weight',
    'mixer.conv1d.weight': 'ssm_conv1d.weight',
    'mixer.conv1d.bias': 'ssm_conv1d.bias',
    'mixer.x_proj.weight': 'ssm_x.weight',
    'mixer.dt_proj.weight': 'ssm_dt.weight',
    'mixer.dt_proj.bias': 'ssm_dt.bias',
    'mixer.A_log': 'ssm_a',
    'mixer.D': 'ssm_d',
    'mixer.out_proj.weight': 'ssm_out.weight',
}


def tensors(path):
    """Names and arrays of a safetensors file that is all f32."""
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, 'r', 8 + length)
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        assert entry['dtype'] == 'F32', name
        begin, end = entry['data_offsets']
        yield name, data[begin:end].view(np.float32).reshape(entry['shape'])


def renamed(name, array):
    """The tensor as llama.cpp has it; None for the tied head."""
    if name == 'backbone.embedding.weight':
        return 'token_embd.weight', array
    if name == 'backbone.norm_f.weight':
        return 'output_norm.weight', array
    if name == 'lm_head.weight':
        return None
    _, _, layer, rest = name.split('.', 3)
    if rest == 'mixer.A_log':
        array = -np.exp(array)
    elif rest == 'mixer.conv1d.weight':
        array = array.squeeze(1)
    return f'blk.{layer}.{LAYER[rest]}', array


def write_vocabulary(writer, tokenizer, size):
    tokens = [f'[{i}]' for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    merges = []
    if tokenizer == '-':
        types = [gguf.TokenType.NORMAL] * size
        # llama.cpp wants to know a line feed (Ċ in byte-level BPE) and at least one merge.
        tokens[:4] = ['<|endoftext|>', 'Ċ', 'a', 'aa']
        merges = ['a a']
    else:
        content = json.loads(Path(tokenizer).read_text('utf-8'))
        for token, i in content['model']['vocab'].items():
            tokens[i], types[i] = token, gguf.TokenType.NORMAL
        for added in content['added_tokens']:
            tokens[added['id']] = added['content']
            types[added['id']] = gguf.TokenType.CONTROL if added['special'] else gguf.TokenType.USER_DEFINED
        merges = [m if isinstance(m, str) else ' '.join(m) for m in content['model']['merges']]
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('olmo')  # GPT-2's split of a text into words, as GPT-NeoX has it
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def write(folder, tokenizer, path):
    config = json.loads((folder / 'config.json').read_text())
    arrays = dict(filter(None, (renamed(*tensor) for tensor in tensors(folder / 'model.safetensors'))))
    d_inner, d_conv = arrays['blk.0.ssm_conv1d.weight'].shape
    vocabulary, d_model = arrays['token_embd.weight'].shape
    writer = gguf.GGUFWriter(path, 'mamba')
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config['n_layer'])
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(arrays['blk.0.ssm_a'].shape[1])
    writer.add_ssm_time_step_rank(arrays['blk.0.ssm_dt.weight'].shape[1])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_dt_b_c_rms(False)
    writer.add_file_type(llama.LLAMA_FTYPE_ALL_F32)
    write_vocabulary(writer, tokenizer, vocabulary)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@llama.llama_log_callback
def on_log(level, text, _):
    if level == 4:  # errors
        sys.stderr.write(text.decode())


def quantize(source, target, type):
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = TYPES[type]
    parameters.pure = True  # the same type for all matrices, the head's included, as ours
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) != 0:
        sys.exit(f'{target} could not be made')


def main():
    llama.llama_log_set(on_log, None)
    folder, tokenizer, types = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    source = folder / 'f32.gguf'
    if not source.exists():
        write(folder, tokenizer, source)
    for type in types:
        target = folder / f'{type}.gguf'
        if not target.exists():
            quantize(source, target, type)


main()
