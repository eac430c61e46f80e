"""Training steps in PyTorch, f32, on the CPU: tokens per second of transformers' MambaForCausalLM with its own scan, with
mambapy's, and with the scan below. Prints JSON lines. Asked by a line on stdin: `<contestant> <steps>`, or `check`.

python peer.py D_MODEL LAYERS VOCABULARY SEQUENCES LENGTH THREADS
"""

import importlib.metadata
import json
import statistics
import sys
import time


import torch
import torch.nn.functional as F
import transformers
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

d_model, layers, vocabulary, sequences, length, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)


class Recurrence(torch.autograd.Function):
    """h[t] = decay[t] * h[t-1] + x[t] over the first dimension from h[-1] = start, one fused operation a step for all the
    rest."""

    @staticmethod
    def forward(ctx, start, decay, x):
        h = torch.empty((len(x) + 1, *x.shape[1:]))
        h[0] = start
        for t in range(len(x)):
            torch.addcmul(x[t], decay[t], h[t], out=h[t + 1])
        ctx.save_for_backward(decay, h)
        return h[1:]

    @staticmethod
    def backward(ctx, grad):
        decay, h = ctx.saved_tensors
        x_grad = torch.empty_like(decay)
        x_grad[-1] = grad[-1]
        for t in range(len(decay) - 2, -1, -1):
            torch.addcmul(grad[t], decay[t + 1], x_grad[t + 1], out=x_grad[t])
        return decay[0] * x_grad[0], x_grad * h[:-1], x_grad


CHUNK = 32  # steps whose tensors stay in the processor's caches


def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=False, **_):
    """As transformers' mamba_selective_scan, time outermost: u, delta, z [batch, channels, time], B, C [batch, state, time]."""
    assert delta_softplus

    def time_first(x):
        return x.permute(2, 0, 1).contiguous()

    u, B, C = time_first(u), time_first(B), time_first(C)
    delta = F.softplus(time_first(delta) + delta_bias)
    input = delta * u
    h = torch.zeros(*u.shape[1:], A.shape[1])[None]
    outputs = []
    for delta_, input_, B_, C_ in zip(*(x.split(CHUNK) for x in (delta, input, B, C))):
        decay = torch.exp(delta_[..., None] * A)
        h = Recurrence.apply(h[-1], decay, input_[..., None] * B_[:, :, None, :])
        outputs.append((h @ C_[..., None]).squeeze(-1))
    y = torch.cat(outputs) + D * u
    y = y.permute(1, 2, 0) * F.silu(z)
    return (y, h[-1]) if return_last_state else y


own_scan = modeling_mamba.mamba_selective_scan


class Contestant:
    """The same model with one of three scans."""

    def __init__(self, name):
        self.scan = scan if name == 'vectorized' else own_scan
        torch.manual_seed(0)
        config = MambaConfig(
            vocab_size=vocabulary,
            hidden_size=d_model,
            num_hidden_layers=layers,
            use_mambapy=name == 'mambapy',
            use_cache=False,
            use_associative_scan=False,
        )
        self.model = MambaForCausalLM(config).float().train()
        decayed = [p for n, p in self.model.named_parameters() if p.dim() >= 2 and not n.endswith('A_log')]
        others = [p for n, p in self.model.named_parameters() if p.dim() < 2 or n.endswith('A_log')]
        groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
        self.rows = torch.randint(0, vocabulary, (sequences, length + 1))

    def gradients(self, rows):
        modeling_mamba.mamba_selective_scan = self.scan
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(rows[:, :-1]).logits
        loss = F.cross_entropy(logits.reshape(-1, logits.size(-1)), rows[:, 1:].reshape(-1))
        loss.backward()

    def step(self):
        self.gradients(self.rows)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def seconds(self, steps):
        self.step()
        taken = []
        for _ in range(steps):
            began = time.perf_counter()
            self.step()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


contestants = {name: Contestant(name) for name in ['transformers', 'mambapy', 'vectorized']}


def check():
    """The largest relative L2 difference of a parameter's gradient from that of transformers' own scan, on 2 x 65 tokens."""
    found = {}
    for contestant in contestants.values():
        contestant.gradients(contestant.rows[:2, :66])
    truth = dict(contestants['transformers'].model.named_parameters())
    for name, contestant in contestants.items():
        errors = [
            ((p.grad - truth[n].grad).norm() / truth[n].grad.norm()).item()
            for n, p in contestant.model.named_parameters()
        ]
        found[name] = max(errors)
    return found


versions = {'torch': torch.__version__, 'transformers': transformers.__version__, 'mambapy': importlib.metadata.version('mambapy')}
print(json.dumps({'versions': versions, 'parameters': contestants['transformers'].model.num_parameters()}), flush=True)
for line in sys.stdin:
    name, *steps = line.split()
    answer = check() if name == 'check' else sequences * length / contestants[name].seconds(int(steps[0]))
    print(json.dumps(answer), flush=True)
