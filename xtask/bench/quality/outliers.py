"""A checkpoint that computes the same function with outlier channels, as large models have them.

    python3 outliers.py SRC OUT [--gain 30] [--channels 4]

The gains of a few channels of every norm that feeds a layer's matrices are multiplied, the columns of the matrices that
read them divided. Values stay in the checkpoint's dtype; what rounding them changes is part of the new model, which is
its own reference.
"""
import argparse
import re

import numpy as np

from checkpoint import load, save

NORMS = re.compile(r"model\.layers\.\d+\.(input|post_attention)_layernorm\.weight")
READERS = {
    "input": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention": ("mlp.gate.", "gate_proj", "up_proj"),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("src")
    p.add_argument("out")
    p.add_argument("--gain", type=float, default=30)
    p.add_argument("--channels", type=int, default=4)
    a = p.parse_args()
    tensors = {k: np.array(v) for k, v in load(a.src).items()}
    changed = 0
    for norm in [n for n in tensors if NORMS.fullmatch(n)]:
        width = tensors[norm].shape[0]
        channels = [(2 * i + 1) * width // (2 * a.channels) + 1 for i in range(a.channels)]
        layer, which = norm.rsplit(".", 2)[0], NORMS.fullmatch(norm).group(1)
        dtype = tensors[norm].dtype
        gains = tensors[norm].astype(np.float32)
        gains[channels] *= a.gain
        tensors[norm] = gains.astype(dtype)
        for name, x in tensors.items():
            if name.startswith(layer + ".") and x.ndim == 2 and any(r in name for r in READERS[which]):
                x = x.astype(np.float32)
                x[:, channels] /= a.gain
                tensors[name] = x.astype(dtype)
                changed += 1
    save(tensors, a.src, a.out)
    print(f"{a.out}: {a.channels} channels × {a.gain} in every layer norm, {changed} matrices follow")


if __name__ == "__main__":
    main()
