"""Makes small checkpoints with torch itself, so that the reader is tested on what torch writes.

Run with torch 2.x: python make_torch_fixtures.py. Each .json holds, per tensor, its first and last element
and its sum, as torch reads them.
"""
import collections
import json
import os

import torch

torch.manual_seed(0)
here = os.path.dirname(os.path.abspath(__file__))
d_model, d_inner, d_state, dt_rank, padded_vocab = 8, 16, 16, 1, 16


def summarize(name, tensors):
    summary = {
        key: [float(x) for x in (v.flatten()[0], v.flatten()[-1], v.double().sum())]
        for key, v in ((key, v.detach()) for key, v in tensors.items())
    }
    with open(os.path.join(here, name), "w") as file:
        json.dump(summary, file, indent=1)


layer = "backbone.layers.0."
shapes = {
    "backbone.embedding.weight": ((padded_vocab, d_model), torch.bfloat16),
    layer + "norm.weight": ((d_model,), torch.float32),
    layer + "mixer.A_log": ((d_inner, d_state), torch.float32),
    layer + "mixer.D": ((d_inner,), torch.float32),
    layer + "mixer.in_proj.weight": ((2 * d_inner, d_model), torch.bfloat16),
    layer + "mixer.conv1d.weight": ((d_inner, 1, 4), torch.float16),
    layer + "mixer.conv1d.bias": ((d_inner,), torch.float32),
    layer + "mixer.x_proj.weight": ((dt_rank + 2 * d_state, d_inner), torch.bfloat16),
    layer + "mixer.dt_proj.weight": ((d_inner, dt_rank), torch.float64),
    layer + "mixer.dt_proj.bias": ((d_inner,), torch.float32),
    layer + "mixer.out_proj.weight": ((d_model, d_inner), torch.bfloat16),
    "backbone.norm_f.weight": ((d_model,), torch.float32),
}

# As the official save_pretrained writes it: a state dict with metadata and a head that shares its storage.
plain = collections.OrderedDict((k, torch.randn(shape).to(dtype)) for k, (shape, dtype) in shapes.items())
plain._metadata = collections.OrderedDict([("", {"version": 1}), ("backbone", {"version": 1})])
summarize("torch-state-dict.json", plain)
plain["lm_head.weight"] = plain["backbone.embedding.weight"]
torch.save(plain, os.path.join(here, "torch-state-dict.bin"))

# A trainer's checkpoint: parameters that are views of one buffer, other entries beside, protocol 4.
flat = torch.randn(4096)
nested, at = collections.OrderedDict(), 0
for key, (shape, _) in shapes.items():
    size = torch.Size(shape).numel()
    nested[key] = torch.nn.Parameter(flat[at : at + size].view(shape))
    at += size
summarize("torch-nested-protocol4.json", nested)
others = {"step": 7, "lr": 1e-3, "args": {"name": "x", "list": [1, 2.5, None, True]}, "big": 1 << 40}
torch.save(
    {"state_dict": nested, **others}, os.path.join(here, "torch-nested-protocol4.bin"), pickle_protocol=4
)

# What must be refused: a transposed view, and the format before torch 1.6.
transposed = dict(plain)
transposed[layer + "mixer.out_proj.weight"] = torch.randn(d_inner, d_model).T
torch.save(transposed, os.path.join(here, "torch-transposed.bin"))
torch.save(
    {"backbone.norm_f.weight": torch.randn(d_model)},
    os.path.join(here, "torch-legacy.bin"),
    _use_new_zipfile_serialization=False,
)
