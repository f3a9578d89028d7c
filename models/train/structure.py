"""A starting point for recall: one look-back head and one induction head, set by hand.

An induction circuit ("the token that followed this one before") is what answers recall questions. A
small model takes long to discover it, so the weights start near one and training refines it:

- Layer 0, heads 0 and 1 attend to the previous token and copy a projection of its embedding into the
  last head_dim channels of the residual stream. Channel 0 of the embedding is the same for all tokens,
  a constant for q and k to read; RoPE turns the two constants so that they meet one position apart.
- Layer 1, head 0 compares the current token (q) with every row's previous token (k) and copies the
  embedding of the row it finds. Only channels that RoPE hardly turns within the context take part.
"""
import math

import torch

CONSTANT = 4.0          # value of channel 0 in every embedding
SPREAD = 7.0            # norm of the rest
TURNING = 10 / 32       # share of the RoPE pairs that the look-back head uses: those that turn most
LOOK_BACK = 1.2         # strength of the look-back head's q and k
COPY = 0.5              # of its output, about an embedding's size
MATCH = 2.0             # strength of the induction head's q and k
ANSWER = 4.0            # of its output


@torch.no_grad()
def plant_recall(model):
    c = model.config
    d, own = c.head_dim, c.n_embd - c.head_dim      # channels from `own` on receive the previous token
    still = 1 + int(d / 2 * math.log(c.n_ctx) / math.log(c.rope_base))  # pairs turning under 1 radian
    match = torch.arange(2 * still, d)

    embedding = model.embedding.weight
    embedding[:, own:] *= 0.2
    embedding[:, 0] = 0.0
    embedding *= SPREAD / embedding.norm(dim=1, keepdim=True)   # equal norms: the constant stays one
    embedding[:, 0] = CONSTANT
    projection = torch.zeros(d, c.n_embd)
    projection[:, 1:own] = torch.nn.init.orthogonal_(torch.empty(d, own - 1)) * math.sqrt(own / d)

    first = model.layers[0].attn
    turning = 2 * int(TURNING * d / 2)              # channels
    angle = c.rope_base ** (-torch.arange(0, turning, 2) / d)
    first.k.weight *= 0.1
    first.k.weight[:, 0] = 0.0
    first.k.weight[0:turning:2, 0] = LOOK_BACK
    first.v.weight.copy_(projection)
    for head in (0, 1):
        rows = slice(head * d, (head + 1) * d)
        first.q.weight[rows] *= 0.1
        first.q.weight[rows, 0] = 0.0
        first.q.weight[rows][0:turning:2, 0] = LOOK_BACK * angle.cos()
        first.q.weight[rows][1:turning:2, 0] = -LOOK_BACK * angle.sin()
        first.out.weight[:, rows] *= 0.1
    first.out.weight[own:, :d] = COPY * torch.eye(d)

    second = model.layers[1].attn
    second.k.weight *= 0.1
    second.k.weight[match] = 0.0
    second.k.weight[match, own + match] = MATCH
    second.q.weight[:d] *= 0.1
    second.q.weight[match] = MATCH * projection[match]
    second.v.weight.copy_(torch.zeros_like(second.v.weight))
    second.v.weight[:, 1:own] = torch.nn.init.orthogonal_(torch.empty(d, own - 1)) * math.sqrt(own / d)
    second.out.weight[:, :d] = ANSWER * second.v.weight.t() * math.sqrt(d / own)
