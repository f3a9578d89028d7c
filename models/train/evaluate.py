"""Scores a checkpoint in PyTorch: loss on the held-out text, recall by distance, and a sample of text."""
import argparse
import json
import pathlib

import numpy as np
import torch
from torch.nn import functional

from model import Config, Llama
from tokenizer import BOS, Vocabulary

BUCKETS = [0, 256, 512, 1024, 1536, 2048]


@torch.no_grad()
def held_out_loss(model, ids, length):
    """Mean cross entropy over whole contexts of the given length, each after BOS."""
    total = 0.0
    n = len(ids) // length
    for i in range(n):
        row = torch.tensor([[BOS] + ids[i * length:(i + 1) * length].tolist()])
        total += functional.cross_entropy(model(row[:, :-1])[0], row[0, 1:]).item()
    return total / n


@torch.no_grad()
def recall_by_distance(model, vocab, path):
    """[(low, high, right, asked)] for the distance buckets."""
    rows = [[low, high, 0, 0] for low, high in zip(BUCKETS, BUCKETS[1:])]
    for line in path.read_text().splitlines():
        context = json.loads(line)
        ids = [BOS] + vocab.encode(context["text"])
        assert len(ids) == context["n_tokens"]
        best = model(torch.tensor([ids]))[0].argmax(-1)
        for ask in context["asks"]:
            row = next(row for row in rows if row[0] <= ask["distance"] < row[1])
            row[2] += int(best[ask["ask_token"]] == ask["answer_id"])
            row[3] += 1
    return rows


@torch.no_grad()
def complete(model, vocab, prompt, n_tokens, temperature):
    ids = [BOS] + vocab.encode(prompt)
    for _ in range(n_tokens):
        logits = model(torch.tensor([ids]))[0, -1]
        if temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            ids.append(int(torch.multinomial(torch.softmax(logits / temperature, -1), 1)))
    return vocab.model.decode(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--recall", type=pathlib.Path, required=True)
    parser.add_argument("--name", default="checkpoint")
    parser.add_argument("--prompt", default="And the king said unto")
    args = parser.parse_args()
    torch.manual_seed(1)
    saved = torch.load(args.work / f"{args.name}.pt")
    model = Llama(Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    vocab = Vocabulary(args.work / "tokenizer.model")
    ids = np.load(args.work / "eval.npy")
    print(f"step {saved['state']['step']}, {saved['state']['tokens']} tokens, "
          f"{saved['state']['seconds'] / 60:.0f} minutes")
    for length in (256, 2048):
        loss = held_out_loss(model, ids, length)
        print(f"held-out loss at {length}: {loss:.4f} (perplexity {np.exp(loss):.1f})")
    rows = recall_by_distance(model, vocab, args.recall)
    for low, high, right, asked in rows:
        print(f"recall at distance {low}-{high - 1}: {right}/{asked} = {right / max(1, asked):.3f}")
    right, asked = (sum(row[i] for row in rows) for i in (2, 3))
    print(f"recall: {right}/{asked} = {right / asked:.4f}")
    print("greedy: " + complete(model, vocab, args.prompt, 40, 0))
    print("sampled: " + complete(model, vocab, args.prompt, 100, 0.8))


if __name__ == "__main__":
    main()
