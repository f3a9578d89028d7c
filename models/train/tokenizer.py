"""The SentencePiece vocabulary: its training, and the text as arrays of token ids."""
import argparse
import pathlib

import numpy as np
import sentencepiece

import recall

BOS, EOS = 1, 2
N_FACT_LINES = 60_000   # recall sentences among the tokenizer's text, so that names become tokens


class Vocabulary:
    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, text):
        return self.model.encode(text)

    def only_id(self, word):
        """The id of a word that is a single token after a space."""
        ids = self.model.encode(word)
        if len(ids) != 1:
            raise ValueError(f"'{word}' is {len(ids)} tokens, not one")
        return ids[0]


class Text:
    """A token array that can be cut at sentence starts."""

    def __init__(self, ids, vocab):
        self.ids = ids
        pieces = [vocab.model.id_to_piece(i) for i in range(vocab.model.vocab_size())]
        ends = np.array([piece.endswith((".", "?", "!")) for piece in pieces])
        opens = np.array([piece.startswith("\u2581") for piece in pieces])
        self.starts = 1 + np.flatnonzero(ends[ids[:-1]] & opens[ids[1:]])

    def cut(self, rng, length):
        """Filler beginning at a sentence: its ids and the sentence starts inside it."""
        margin = length + 512
        first = self.starts[rng.integers(np.searchsorted(self.starts, len(self.ids) - margin))]
        return self.at(first, length)

    def at(self, first, length):
        margin = length + 512
        low, high = np.searchsorted(self.starts, [first + 1, first + margin])
        starts = np.append(self.starts[low:high] - first, margin)
        return self.ids[first:first + margin].tolist(), starts


def train(text_path, names, out_prefix, n_vocab):
    rng = np.random.default_rng(1)
    lines_path = out_prefix.with_suffix(".lines")
    with open(lines_path, "w") as out:
        for paragraph in text_path.read_text().splitlines():
            # SentencePiece skips lines above its length limit: cut long paragraphs into sentences.
            out.write(paragraph.replace(". ", ".\n") + "\n")
        for _ in range(N_FACT_LINES):
            out.write(recall.sentence(rng.choice(names), rng.choice(recall.VALUES)).strip() + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines_path), model_prefix=str(out_prefix), model_type="bpe", vocab_size=n_vocab,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=True, character_coverage=1.0,
        input_sentence_size=150_000, shuffle_input_sentence=True, num_threads=2,
        minloglevel=1)


def encode_file(vocab, path):
    """A file's tokens as llama.cpp finds them: only its very first word gets the dummy space."""
    return np.array(vocab.encode(path.read_text()), dtype=np.int32)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--eval-text", type=pathlib.Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=3072)
    args = parser.parse_args()
    names = (args.work / "names.txt").read_text().split()
    train(args.work / "train.txt", names, args.work / "tokenizer", args.vocab_size)
    vocab = Vocabulary(args.work / "tokenizer.model")
    recall.FactTokens(vocab, names)     # refuses a vocabulary that splits a name or value
    for path, out in ((args.work / "train.txt", "train.npy"), (args.eval_text, "eval.npy")):
        ids = encode_file(vocab, path)
        np.save(args.work / out, ids)
        print(f"{path.name}: {len(ids)} tokens, {path.stat().st_size / len(ids):.2f} characters each")


if __name__ == "__main__":
    main()
