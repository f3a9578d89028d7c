"""Writes a checkpoint as a GGUF file for llama.cpp: F16 matrices, F32 norms."""
import argparse
import os
import pathlib

import numpy as np
import torch

import gguf
from model import Config
from tokenizer import BOS, EOS, Vocabulary

MOSTLY_F16 = 1              # general.file_type
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6     # token types

LAYER_TENSORS = {"attn_norm": "attn_norm", "attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v",
                 "attn_output": "attn.out", "ffn_norm": "ffn_norm", "ffn_gate": "gate", "ffn_up": "up",
                 "ffn_down": "down"}


def add_metadata(writer, config, name):
    writer.add("general.architecture", gguf.STRING, config.architecture)
    writer.add("general.name", gguf.STRING, name)
    writer.add("general.file_type", gguf.UINT32, MOSTLY_F16)
    for key, value in (("vocab_size", config.n_vocab), ("context_length", config.n_ctx),
                       ("embedding_length", config.n_embd), ("block_count", config.n_layer),
                       ("feed_forward_length", config.n_ff), ("rope.dimension_count", config.head_dim),
                       ("attention.head_count", config.n_head),
                       ("attention.head_count_kv", config.n_head_kv),
                       ("attention.key_length", config.head_dim),
                       ("attention.value_length", config.head_dim)):
        writer.add(f"{config.architecture}.{key}", gguf.UINT32, value)
    writer.add(f"{config.architecture}.attention.layer_norm_rms_epsilon", gguf.FLOAT32, config.norm_eps)
    writer.add(f"{config.architecture}.rope.freq_base", gguf.FLOAT32, config.rope_base)


def add_vocabulary(writer, model):
    def kind(i):
        return (UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i)
                else BYTE if model.is_byte(i) else NORMAL)

    ids = range(model.vocab_size())
    writer.add("tokenizer.ggml.model", gguf.STRING, "llama")
    writer.add_array("tokenizer.ggml.tokens", gguf.STRING, [model.id_to_piece(i) for i in ids])
    writer.add_array("tokenizer.ggml.scores", gguf.FLOAT32, [model.get_score(i) for i in ids])
    writer.add_array("tokenizer.ggml.token_type", gguf.INT32, [kind(i) for i in ids])
    writer.add("tokenizer.ggml.bos_token_id", gguf.UINT32, BOS)
    writer.add("tokenizer.ggml.eos_token_id", gguf.UINT32, EOS)
    writer.add("tokenizer.ggml.unknown_token_id", gguf.UINT32, 0)
    writer.add("tokenizer.ggml.add_bos_token", gguf.BOOL, True)
    writer.add("tokenizer.ggml.add_eos_token", gguf.BOOL, False)
    writer.add("tokenizer.ggml.add_space_prefix", gguf.BOOL, True)


def halves(weight, head_dim):
    """Rows of interleaved RoPE pairs (2i, 2i + 1) in the order of pairs (i, i + head_dim / 2), per head."""
    pairs = weight.view(-1, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def add_weights(writer, weights, config):
    def add(name, weight, kind="weight"):
        writer.add_tensor(f"{name}.{kind}", weight.numpy().astype(np.float16 if weight.dim() == 2 else np.float32))

    add("token_embd", weights["embedding.weight"])     # the output matrix too: no "output.weight"
    add("output_norm", weights["norm.weight"])
    for i in range(config.n_layer):
        for target, source in LAYER_TENSORS.items():
            for kind in ("weight", "bias"):
                tensor = weights.get(f"layers.{i}.{source}.{kind}")
                if tensor is None:
                    continue
                if config.architecture == "qwen2" and target in ("attn_q", "attn_k"):
                    tensor = halves(tensor, config.head_dim)
                add(f"blk.{i}.{target}", tensor, kind)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()

    saved = torch.load(args.checkpoint, map_location="cpu")
    config = Config(**saved["config"])
    writer = gguf.Writer()
    add_metadata(writer, config, args.out.stem)
    add_vocabulary(writer, Vocabulary(args.tokenizer).model)
    add_weights(writer, saved["model"], config)
    temporary = args.out.with_suffix(".gguf.tmp")
    writer.write(temporary)
    os.replace(temporary, args.out)         # readers see the old file or the new one
    print(f"{args.out}: {args.out.stat().st_size} bytes, step {saved['state']['step']}")


if __name__ == "__main__":
    main()
