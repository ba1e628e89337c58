"""A GGUF file of the qwen3moe architecture as a Hugging Face checkpoint of F32 values, so that one program can evaluate it.

    python3 dequantize.py LLAMA_CPP_FOLDER MODEL.gguf SRC OUT

SRC is the checkpoint the GGUF was made from (its config and tokenizer are copied). Prints a JSON object: bytes of the file,
of all tensors, and of those that are neither embedding, head, norm nor router ("rest"), and the types in use.
Values come from gguf-py, llama.cpp's own reader. qwen3moe permutes nothing; experts are stacked.
"""
import json
import os
import re
import sys
from collections import Counter

import numpy as np

folder, gguf_path, src, out = sys.argv[1:5]
sys.path.insert(0, folder + "/gguf-py")
import gguf  # noqa: E402

from checkpoint import save  # noqa: E402

PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj",
}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight", "output_norm.weight": "model.norm.weight"}


def main():
    tensors, types, rest, total, weights = {}, Counter(), 0, 0, 0
    for t in gguf.GGUFReader(gguf_path).tensors:
        values = np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32)
        values = values.reshape([int(n) for n in reversed(t.shape)])
        total += t.n_bytes
        if t.name in TOP:
            tensors[TOP[t.name]] = values
            continue
        layer, part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", t.name).groups()
        if part.endswith("_exps"):
            for e, x in enumerate(values):
                tensors[f"model.layers.{layer}.mlp.experts.{e}.{PARTS[part]}.weight"] = x
        else:
            tensors[f"model.layers.{layer}.{PARTS[part]}.weight"] = values
        if values.ndim > 1 and part != "ffn_gate_inp":
            rest += t.n_bytes
            weights += values.size
            types[t.tensor_type.name] += values.size
    save(tensors, src, out)
    print(json.dumps({"file": os.path.getsize(gguf_path), "tensors": total, "rest": rest, "weights": weights,
                      "bpw": 8 * rest / weights, "types": dict(types)}))


main()
