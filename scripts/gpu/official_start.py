# python3 official_start.py TRAIN_TOKENS FOLDER: where the official run of the default model began. Draws with PyTorch on
# a GPU what its recipe draws (torch.manual_seed(0), the construction of MambaLMHeadModel, then a generator of seed 1),
# in its order, and writes the parameters (model.safetensors, config.json) and where each row of each step begins
# (begins.u32). `train_novels run … --start FOLDER` goes on from there.
import json, math, os, sys

import torch
from torch import nn

D_MODEL, LAYERS, VOCABULARY, D_STATE, D_CONV = 256, 12, 8192, 16, 4
D_INNER, DT_RANK = 2 * D_MODEL, math.ceil(D_MODEL / 16)
ROWS, LENGTH, STEPS = 48, 1024, 5803
cuda = {"device": "cuda", "dtype": torch.float32}
tokens, folder = sys.argv[1:]
parameters = {}


def draw_mixer(name):
    """The modules in the order in which mamba_ssm's Mamba makes them: each draws its weight, then its bias."""
    in_proj = nn.Linear(D_MODEL, 2 * D_INNER, bias=False, **cuda)
    conv1d = nn.Conv1d(D_INNER, D_INNER, D_CONV, groups=D_INNER, padding=D_CONV - 1, **cuda)
    x_proj = nn.Linear(D_INNER, DT_RANK + 2 * D_STATE, bias=False, **cuda)
    dt_proj = nn.Linear(DT_RANK, D_INNER, bias=True, **cuda)
    nn.init.uniform_(dt_proj.weight, -(DT_RANK**-0.5), DT_RANK**-0.5)
    steps = torch.exp(torch.rand(D_INNER, **cuda) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
    steps = steps.clamp(min=1e-4)
    out_proj = nn.Linear(D_INNER, D_MODEL, bias=False, **cuda)
    states = torch.arange(1, D_STATE + 1, **cuda).repeat(D_INNER, 1)
    parameters.update({
        f"{name}.norm.weight": torch.ones(D_MODEL),
        f"{name}.mixer.in_proj.weight": in_proj.weight,
        f"{name}.mixer.conv1d.weight": conv1d.weight,
        f"{name}.mixer.conv1d.bias": conv1d.bias,
        f"{name}.mixer.x_proj.weight": x_proj.weight,
        f"{name}.mixer.dt_proj.weight": dt_proj.weight,
        f"{name}.mixer.dt_proj.bias": steps + torch.log(-torch.expm1(-steps)),
        f"{name}.mixer.A_log": torch.log(states),
        f"{name}.mixer.D": torch.ones(D_INNER),
        f"{name}.mixer.out_proj.weight": out_proj.weight,
    })


def draw_again():
    """_init_weights, which MixerModel and MambaLMHeadModel both apply: the later draws stay."""
    nn.init.normal_(parameters["backbone.embedding.weight"], std=0.02)
    for layer in range(LAYERS):
        weight = parameters[f"backbone.layers.{layer}.mixer.out_proj.weight"]
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        weight /= math.sqrt(LAYERS)


with torch.no_grad():
    torch.manual_seed(0)
    parameters["backbone.embedding.weight"] = nn.Embedding(VOCABULARY, D_MODEL, **cuda).weight
    for layer in range(LAYERS):
        draw_mixer(f"backbone.layers.{layer}")
    parameters["backbone.norm_f.weight"] = torch.ones(D_MODEL)
    draw_again()
    nn.Linear(D_MODEL, VOCABULARY, bias=False, **cuda)  # lm_head, whose draws the tied embedding replaces
    draw_again()

    generator = torch.Generator(device="cuda").manual_seed(1)
    count = os.path.getsize(tokens) // 2
    draws = [torch.randint(0, count - LENGTH - 1, (ROWS, 1), device="cuda", generator=generator) for _ in range(STEPS)]

os.makedirs(folder, exist_ok=True)
header, end = {}, 0
values = {name: value.detach().float().cpu().contiguous().numpy() for name, value in parameters.items()}
for name, value in values.items():
    header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [end, end + value.nbytes]}
    end += value.nbytes
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(f"{folder}/model.safetensors", "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for value in values.values():
        file.write(value.tobytes())
with open(f"{folder}/config.json", "w") as file:
    json.dump({"d_model": D_MODEL, "n_layer": LAYERS, "vocab_size": VOCABULARY, "ssm_cfg": {"layer": "Mamba1"}}, file)
with open(f"{folder}/begins.u32", "wb") as file:
    file.write(torch.stack(draws).reshape(-1).cpu().numpy().astype("<u4").tobytes())
print(f"{sum(value.size for value in values.values())} parameters, {STEPS * ROWS} rows of {count} tokens")
