"""Reading and writing plain Hugging Face checkpoints of one safetensors file (numpy and ml_dtypes only)."""
import json
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}


def header(path):
    """The entries of a safetensors file, and where its data starts."""
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        entries = json.loads(f.read(n))
    entries.pop("__metadata__", None)
    return entries, 8 + n


def load(folder):
    """name -> array, in the dtype of the file."""
    out = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        if not path.name.startswith("model"):
            continue
        entries, start = header(path)
        data = np.memmap(path, dtype=np.uint8, mode="r")
        for name, e in entries.items():
            a, b = e["data_offsets"]
            out[name] = data[start + a:start + b].view(DTYPES[e["dtype"]]).reshape(e["shape"])
    return out


def save(tensors, like, out):
    """Writes tensors beside the config and tokenizer of the checkpoint `like`."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for path in Path(like).iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and "index" not in path.name:
            shutil.copyfile(path, out / path.name)
    entries, at = {}, 0
    for name in sorted(tensors):
        x = tensors[name]
        entries[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 64)
    with open(out / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for name in sorted(tensors):
            f.write(np.ascontiguousarray(tensors[name]).tobytes())
