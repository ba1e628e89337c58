#!/usr/bin/env python3
"""Figures of `ashlar eval`, computed by numpy alone.

Without arguments: the expected values of the unit tests in `src/eval/figures.rs`.

With `IDS MODEL REFERENCE`, files of `ashlar logits` (input_ids, logits, logits) of one window each: the figures of
a comparison over that window. `ashlar eval --ctx T` on the text of the same ids must print them.
"""
import sys

import numpy as np


def figures(nll, reference_nll, kl):
    dp = np.exp(-nll) - np.exp(-reference_nll)
    return {
        "perplexity": np.exp(nll.mean()),
        "reference": np.exp(reference_nll.mean()),
        "ratio": np.exp((nll - reference_nll).mean()),
        "kl mean": kl.mean(),
        **{f"kl {q}": np.quantile(kl, q) for q in (0.5, 0.9, 0.99, 0.999, 1.0)},
        "delta_p mean": dp.mean(),
        "delta_p rms": np.sqrt((dp**2).mean()),
    }


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def compared(ids, model, reference):
    p, q = log_softmax(reference[:-1]), log_softmax(model[:-1])
    at = np.arange(len(ids) - 1), ids[1:]
    out = figures(-q[at], -p[at], (np.exp(p) * (p - q)).sum(axis=-1))
    out["top1"] = (p.argmax(axis=-1) == q.argmax(axis=-1)).mean()
    return out


if len(sys.argv) > 1:
    from safetensors.numpy import load_file

    tokens = load_file(sys.argv[1])["input_ids"][0]
    logits = [load_file(f)["logits"][0] for f in sys.argv[2:4]]
    result = compared(tokens, *logits)
else:
    result = figures(
        np.array([1, 2, 0.5, 3, 1, 0.2]), np.array([0.5, 2, 0.7, 2.5, 1.5, 0.1]), np.array([0.1, 0, 0.02, 0.3, 0.04, 0.08])
    )
for name, value in result.items():
    print(f"{name:14} {float(value)!r}")
