#!/usr/bin/env python3
"""Golden vectors of the GGUF block types, decoded by the `gguf` Python package of llama.cpp (pip install gguf).

Run it in this folder: python3 make_golden.py. Random blocks, with scales that are finite halves; hex strings are
little-endian bytes. `q8_0`, `q4_0`, `iq4_nl`, `q6_k` and `mxfp4` are those that ashlar keeps as formats of its own: the
crate `source` takes their blocks apart, and its tests read this file too.
"""

import json
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, quants

# type: where the halves of a block lie
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "IQ2_XXS": [0], "IQ2_XS": [0],
    "IQ3_XXS": [0], "MXFP4": [],
}
ROWS = 3

rng = np.random.default_rng(20261121)
out = {}
for name, halves in HALVES.items():
    values, size = GGML_QUANT_SIZES[T[name]]
    per_row = max(1, 64 // values)
    blocks = rng.integers(0, 256, (ROWS * per_row, size), dtype=np.uint8)
    for at in halves:
        scale = (rng.standard_normal(len(blocks)) * 0.02).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(110, 130, len(blocks))
    rows = blocks.reshape(ROWS, -1)
    decoded = quants.dequantize(rows, T[name]).astype("<f4")
    out[name.lower()] = {"n": ROWS, "k": values * per_row, "blocks": rows.tobytes().hex(), "values": decoded.tobytes().hex()}
with open("blocks.json", "w") as f:
    json.dump(out, f, indent=1)
    f.write("\n")
