"""Writes the recall test: held-out text with facts planted in it, and where each is asked.

Every line of the output is one context: its text, and for each fact the token positions (BOS is
token 0) of its statement and of the question. See models/README.md for the fields.
"""
import argparse
import json
import pathlib

import numpy as np

import recall
from tokenizer import BOS, Text, Vocabulary

LEAST_DISTANCE = 16


def plan(rng, facts, n_tokens, n_facts):
    """Facts of one context: [(name, value)] and the inserts for recall.merge."""
    names = rng.permutation(len(facts.names))[:n_facts]
    values = rng.permutation(len(facts.values))[:n_facts]   # distinct, so that no guess is right by luck
    inserts = []
    for name, value in zip(names, values):
        distance = int(rng.integers(LEAST_DISTANCE, n_tokens - 66))
        first = int(rng.integers(0, n_tokens - distance - facts.length - 8))
        ids = facts.encode(name, value)
        for position in (first, first + distance):
            inserts.append((position, ids, facts.answer_at, 1.0))
    return list(zip(names, values)), inserts


def build(rng, text, start, facts, vocab, names, n_tokens, n_facts):
    """One context as a dictionary."""
    pairs, inserts = plan(rng, facts, n_tokens, n_facts)
    filler, starts = text.at(start, n_tokens)
    ids, _ = recall.merge(filler, starts, inserts, n_tokens - 1)
    while not vocab.model.id_to_piece(ids[-1]).startswith("\u2581"):
        ids.pop()       # end at a whole word, or the text would be tokenized otherwise
    ids.pop()
    string = vocab.model.decode(ids)
    assert vocab.encode(string) == ids
    ids = [BOS] + ids
    asks = []
    for name, value in pairs:
        mentions = [i for i, token in enumerate(ids[:-1]) if token == facts.names[name]]
        if len(mentions) < 2:
            continue
        assert len(mentions) == 2 and all(ids[i + 1] == facts.values[value] for i in mentions)
        asks.append({"key": names[name], "answer": recall.VALUES[value], "fact_token": mentions[0],
                     "ask_token": mentions[1], "answer_id": ids[mentions[1] + 1],
                     "distance": mentions[1] - mentions[0]})
    asks.sort(key=lambda ask: ask["ask_token"])
    return {"text": string, "n_tokens": len(ids), "asks": asks}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=2046, help="of a context, BOS included")
    parser.add_argument("--contexts", type=int, default=40)
    parser.add_argument("--facts", type=int, default=32, help="of a context; one that falls off its end is left out")
    args = parser.parse_args()
    vocab = Vocabulary(args.work / "tokenizer.model")
    names = (args.work / "names.txt").read_text().split()
    facts = recall.FactTokens(vocab, names)
    text = Text(np.load(args.work / "eval.npy"), vocab)
    rng = np.random.default_rng(2026)
    last = np.searchsorted(text.starts, len(text.ids) - 2 * args.tokens)
    lines = []
    for start in text.starts[np.linspace(0, last - 1, args.contexts).astype(int)]:
        context = build(rng, text, start, facts, vocab, names, args.tokens, args.facts)
        lines.append(json.dumps({"id": len(lines), **context}))
    args.out.write_text("\n".join(lines) + "\n")
    distances = [ask["distance"] for line in lines for ask in json.loads(line)["asks"]]
    print(f"{len(distances)} trials, distance quartiles {np.percentile(distances, [0, 25, 50, 75, 100])}, "
          f"{args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
