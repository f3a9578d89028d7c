"""Trains the model: half plain text, half text with recall facts, sequences growing to the full context.

Progress is measured in wall-clock time, so that a run ends when it must whatever else the machine
does. It can be paused (SIGSTOP) and taken up again from its checkpoint (--resume).
"""
import argparse
import os
import pathlib
import time

import numpy as np
import torch
from torch.nn import functional

import recall
from model import CONFIGS, Llama
from muon import Muon
from parallel import GradientPool
from structure import plant_recall
from tokenizer import BOS, Text, Vocabulary

# (share of the run at which the stage begins, sequence length, sequences a micro-batch,
#  micro-batches a step, facts a sequence)
STAGES = [(0.00, 256, 4, 5, (3, 10)),
          (0.45, 512, 2, 5, (6, 16)),
          (0.65, 1024, 1, 6, (10, 28)),
          (0.80, 2048, 1, 4, (16, 40))]
# A model of a shorter context stops growing at its context.
RECALL_SHARE = 0.4
MUON_LR, PLANTED_LR, EMBEDDING_LR, NORM_LR = 0.02, 0.004, 0.01, 0.002
DECAY_FROM = 0.50               # share of the run after which the learning rates fall linearly
WARMUP_STEPS = 40
CHECKPOINT_SECONDS = 180
EVAL_TOKENS = 16 * 1024
LOG_STEPS = 10


def stages_of(config):
    return [stage for stage in STAGES if stage[1] <= config.n_ctx]


def stage_at(progress, config):
    return [stage for stage in stages_of(config) if stage[0] <= progress][-1]


def make_batch(rng, text, facts, stage):
    """ids [n][length + 1] that begin with BOS, and the loss weights [n][length] of the predictions."""
    _, length, n_sequences, _, (least, most) = stage
    rows, weights = [], []
    for _ in range(n_sequences):
        n_facts = int(rng.integers(least, most + 1)) if rng.random() < RECALL_SHARE else 0
        ids, row_weights = recall.training_sequence(rng, text, facts, length, n_facts)
        rows.append([BOS] + ids)
        weights.append(row_weights)
    return torch.tensor(rows), torch.tensor(weights)


def losses(model, ids):
    """Cross entropy [n][length] of every next token."""
    logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none") \
        .view(ids.shape[0], -1)


@torch.no_grad()
def evaluate(model, held_out, facts, length):
    """(loss on held-out text, share of recall answers that are right) at the given length."""
    rng = np.random.default_rng(7)
    n = max(1, EVAL_TOKENS // length)
    plain = [[BOS] + held_out.ids[i * length:(i + 1) * length].tolist() for i in range(n)]
    loss = losses(model, torch.tensor(plain)).mean().item()
    stage = [stage for stage in STAGES if stage[1] == length][0]
    rows, weights = [], []
    for _ in range(max(2, n // 4)):
        ids, row_weights = recall.training_sequence(rng, held_out, facts, length, stage[4][1])
        rows.append([BOS] + ids)
        weights.append(row_weights)
    ids, asked = torch.tensor(rows), torch.tensor(weights) == recall.ANSWER_WEIGHT
    right = model(ids[:, :-1]).argmax(-1) == ids[:, 1:]
    return loss, right[asked].float().mean().item()


def save(path, model, optimisers, state):
    temporary = path.with_suffix(".tmp")
    torch.save({"config": vars(model.config), "model": model.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers], "state": state}, temporary)
    os.replace(temporary, path)


def learn(model, rng, text, facts, stage):
    """Adds one micro-batch to the gradients; returns [text loss, right answers, answers, tokens]."""
    ids, weights = make_batch(rng, text, facts, stage)
    logits = model(ids[:, :-1]).flatten(0, 1)
    targets = ids[:, 1:]
    each = functional.cross_entropy(logits, targets.flatten(), reduction="none").view_as(weights)
    ((each * weights).sum() / (weights.numel() * stage[3])).backward()
    with torch.no_grad():
        asked = weights == recall.ANSWER_WEIGHT
        right = logits.view(*weights.shape, -1)[asked].argmax(-1) == targets[asked]
        return [each[weights == 1].mean().item(), right.sum().item(), asked.sum().item(), weights.numel()]


class Trainer:
    def __init__(self, args):
        self.args = args
        self.path = args.work / f"{args.name}.pt"
        vocab = Vocabulary(args.work / "tokenizer.model")
        self.facts = recall.FactTokens(vocab, (args.work / "names.txt").read_text().split())
        self.text = Text(np.load(args.work / "train.npy"), vocab)
        self.held_out = Text(np.load(args.work / "eval.npy"), vocab)
        self.model = Llama(CONFIGS[args.model])
        plant_recall(self.model)
        layers = list(self.model.layers)
        planted = [p for layer in layers[:2] for p in layer.attn.parameters() if p.dim() == 2]
        hidden = [p for layer in layers for p in layer.parameters()
                  if p.dim() == 2 and all(p is not q for q in planted)]
        norms = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimisers = [
            Muon(hidden, MUON_LR, weight_decay=0.01),
            Muon(planted, PLANTED_LR),      # slow, or the planted heads are lost before they are of use
            torch.optim.AdamW([self.model.embedding.weight], EMBEDDING_LR, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.AdamW(norms, NORM_LR, betas=(0.9, 0.98), weight_decay=0.0)]
        self.rates = MUON_LR, PLANTED_LR, EMBEDDING_LR, NORM_LR
        self.state = {"step": 0, "tokens": 0, "seconds": 0.0}
        if args.resume:
            saved = torch.load(self.path)
            self.model.load_state_dict(saved["model"])
            for optimiser, values in zip(self.optimisers, saved["optimisers"]):
                optimiser.load_state_dict(values)
            self.state = saved["state"]
        self.pool = GradientPool(self.model, self.micro_batch, args.processes - 1)

    def micro_batch(self, model, step, index, stage):
        rng = np.random.default_rng((1, step, index))
        return learn(model, rng, self.text, self.facts, STAGES[stage])

    def progress(self):
        return self.state["seconds"] / (60 * self.args.minutes)

    def set_rates(self):
        fade = max(0.01, min(1.0, (1 - self.progress()) / (1 - DECAY_FROM)))
        warm = min(1.0, (self.state["step"] + 1) / WARMUP_STEPS)
        for optimiser, rate in zip(self.optimisers, self.rates):
            optimiser.param_groups[0]["lr"] = rate * fade * warm

    def report(self, length):
        loss, right = evaluate(self.model, self.held_out, self.facts, length)
        print(f"held out at {length}: loss {loss:.4f}, recall {right:.3f}", flush=True)

    def run(self):
        state = self.state
        last_tick = last_saved = last_log = time.time()
        shown = np.zeros(GradientPool.N_STATS)
        while self.progress() < 1:
            stage = stage_at(self.progress(), self.model.config)
            self.set_rates()
            stats = self.pool.run(state["step"], STAGES.index(stage), stage[3])
            for optimiser in self.optimisers:
                optimiser.step()
            shown += stats
            state["step"] += 1
            state["tokens"] += int(stats[3])
            now = time.time()
            state["seconds"] += now - last_tick
            last_tick = now
            if state["step"] % LOG_STEPS == 0:
                print(f"step {state['step']} length {stage[1]} {self.progress():.3f} done, "
                      f"text loss {shown[0] / (LOG_STEPS * stage[3]):.3f}, "
                      f"recall {shown[1] / max(1, shown[2]):.3f}, {shown[3] / (now - last_log):.0f} tokens/s, "
                      f"{state['tokens'] / 1e6:.2f} M tokens", flush=True)
                shown[:], last_log = 0, now
            if now - last_saved > CHECKPOINT_SECONDS:
                save(self.path, self.model, self.optimisers, state)
                self.report(stage[1])
                last_saved = time.time()
        save(self.path, self.model, self.optimisers, state)
        self.report(stages_of(self.model.config)[-1][1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--model", choices=CONFIGS, default="tiny-recall")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--name", default="checkpoint", help="file name of the checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    trainer = Trainer(args)
    print(f"{sum(p.numel() for p in trainer.model.parameters())} parameters", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
