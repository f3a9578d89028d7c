"""A llama- or qwen2-architecture model: RMSNorm, interleaved RoPE, grouped-query attention, SwiGLU, tied embedding.

RoPE rotates the pairs (2i, 2i+1), the convention of llama.cpp's "llama" architecture, so that the
weights go into the GGUF file without a permutation. "qwen2" rotates the pairs (i, i + head_dim / 2) and adds
biases to q, k and v: the export permutes the rows.
"""
import dataclasses
import functools
import math

import torch
from torch import nn
from torch.nn import functional


@dataclasses.dataclass
class Config:
    n_vocab: int = 3072
    n_embd: int = 256
    n_layer: int = 5
    n_head: int = 4
    n_head_kv: int = 1
    head_dim: int = 64
    n_ff: int = 512
    n_ctx: int = 2048
    rope_base: float = 500000.0
    norm_eps: float = 1e-5
    architecture: str = "llama"     # or "qwen2": biases on q, k and v

    @property
    def n_gqa(self):
        return self.n_head // self.n_head_kv


CONFIGS = {
    "tiny-recall": Config(),
    "tiny-outliers": Config(n_vocab=2048, n_embd=256, n_layer=4, n_head=2, n_head_kv=1, head_dim=128, n_ff=384,
                            n_ctx=1024, rope_base=1000000.0, norm_eps=1e-6, architecture="qwen2"),
}

# K biases of a qwen2 model's start, by RoPE pair counted from the slowest, both channels: the few fixed channels
# many times larger than the others that published models of that architecture have, mostly where RoPE hardly turns.
KEY_OUTLIERS = {0: (24.0, -16.0), 2: (-14.0, 10.0), 5: (10.0, 0.0), 30: (8.0, 0.0)}

ATTENTION_BLOCK = 256   # queries at a time: bounds the score memory and skips the masked half


class RootMeanSquare(torch.autograd.Function):
    """x / rms(x) * weight with a hand-written gradient: half the memory passes of autograd's."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = torch.rsqrt((torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2) / x.shape[-1] + eps)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        normed, scale, weight = ctx.saved_tensors
        grad_weight = torch.einsum("...i,...i->i", grad, normed)
        grad = grad * weight
        along = torch.einsum("...i,...i->...", grad, normed)[..., None] / normed.shape[-1]
        return grad.addcmul_(normed, along, value=-1).mul_(scale), grad_weight, None


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.eps = config.norm_eps

    def forward(self, x):
        return RootMeanSquare.apply(x, self.weight, self.eps)


def rope_table(config, length):
    """exp(i angle), complex [length][1][head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.arange(length, dtype=torch.float64)[:, None, None] * config.rope_base ** -exponents
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x, rope):
    """x: [batch][length][heads][head_dim]; channels 2i and 2i + 1 are one complex number."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2)


@functools.lru_cache(maxsize=64)
def causal_bias(n_gqa, n_queries, n_rows):
    """0 where a row may be seen and -1e30 where it lies ahead, [n_gqa * n_queries][n_rows]."""
    ahead = torch.ones(n_queries, n_rows).triu(n_rows - n_queries + 1)
    return (ahead * -1e30).repeat(n_gqa, 1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        n_q, n_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        bias = config.architecture == "qwen2"
        self.q = nn.Linear(config.n_embd, n_q, bias=bias)
        self.k = nn.Linear(config.n_embd, n_kv, bias=bias)
        self.v = nn.Linear(config.n_embd, n_kv, bias=bias)
        self.out = nn.Linear(n_q, config.n_embd, bias=False)

    def forward(self, x, rope):
        c = self.config
        batch, length, _ = x.shape
        q = rotate(self.q(x).view(batch, length, c.n_head, c.head_dim), rope)
        k = rotate(self.k(x).view(batch, length, c.n_head_kv, c.head_dim), rope)
        v = self.v(x).view(batch, length, c.n_head_kv, c.head_dim)
        # Query heads of a group become rows of one matrix: [batch * n_head_kv][n_gqa][length][head_dim].
        q = q.view(batch, length, c.n_head_kv, c.n_gqa, c.head_dim).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch * c.n_head_kv, c.n_gqa, length, c.head_dim) * (1 / math.sqrt(c.head_dim))
        k = k.transpose(1, 2).reshape(batch * c.n_head_kv, length, c.head_dim)
        v = v.transpose(1, 2).reshape(batch * c.n_head_kv, length, c.head_dim)
        rows, last = [], 0
        for q_block in q.split(ATTENTION_BLOCK, dim=2):
            last += q_block.shape[2]
            rows.append(self.block(q_block, k[:, :last], v[:, :last]))
        mixed = torch.cat(rows, dim=2).view(batch, c.n_head, length, c.head_dim)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, c.n_head * c.head_dim))

    def block(self, q, k, v):
        """Causal attention of the last queries, [heads][n_gqa][n_queries][head_dim], over all rows."""
        heads, n_gqa, n_queries, head_dim = q.shape
        n_rows = k.shape[1]
        bias = causal_bias(n_gqa, n_queries, n_rows)
        scores = torch.baddbmm(bias, q.reshape(heads, n_gqa * n_queries, head_dim), k.transpose(1, 2))
        return torch.bmm(torch.softmax(scores, dim=-1), v).view(heads, n_gqa, n_queries, head_dim)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config)
        self.attn = Attention(config)
        self.ffn_norm = RMSNorm(config)
        self.gate = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.down = nn.Linear(config.n_ff, config.n_embd, bias=False)

    def forward(self, x, rope):
        x = x + self.attn(self.attn_norm(x), rope)
        y = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.n_vocab, config.n_embd)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config)
        self.rope = rope_table(config, config.n_ctx)
        self.initialise()

    def initialise(self):
        c = self.config
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.constant_(self.norm.weight, 0.1)    # the embedding is the output matrix too
        for layer in self.layers:
            for linear in (layer.attn.q, layer.attn.k, layer.attn.v, layer.gate, layer.up):
                nn.init.normal_(linear.weight, std=c.n_embd ** -0.5)
            for linear in (layer.attn.out, layer.down):
                nn.init.normal_(linear.weight, std=0.05 * linear.in_features ** -0.5)
            if c.architecture == "qwen2":
                for linear in (layer.attn.q, layer.attn.k, layer.attn.v):
                    nn.init.zeros_(linear.bias)
                for pair, values in KEY_OUTLIERS.items():
                    channel = c.head_dim - 2 - 2 * pair
                    with torch.no_grad():
                        layer.attn.k.bias.view(c.n_head_kv, c.head_dim)[:, channel:channel + 2] = torch.tensor(values)

    def hidden(self, ids):
        """Normed last hidden states [batch][length][n_embd] of ids [batch][length]."""
        x = self.embedding(ids)
        rope = self.rope[:ids.shape[1]]
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)

    def forward(self, ids):
        return functional.linear(self.hidden(ids), self.embedding.weight)
