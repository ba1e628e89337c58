"""ashlar's side of the comparison: packs of the same bytes as llama.cpp's files, made and evaluated.

    python3 ours.py SRC WORK --ashlar PROGRAM --stats S.safetensors --eval TEXT [--methods rtn,search,gptq] \\
        [--only IQ3_S,…] [--uniform k2,k3] [--calibrate TEXT]

Reads WORK/peer.jsonl (peer.py). For every file of the peer a recipe is made whose tensors other than embedding, head, norms
and routers take as many bytes as the peer's, from below and within 0.5 %: embedding and head q8, the smaller of two
neighbouring formats everywhere, the larger one for as many tensors as fit, in this order: attention, down projections,
up, gate; the first and last layers first. Results are lines of JSON in WORK/ours.jsonl. With --uniform every one of these
tensors gets the format instead, whatever its bytes; nothing is compared then.
"""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from checkpoint import header

LADDER = ["k2", "k2h", "k3", "k4", "q6", "q8"]
PARTS = ["v_proj", "o_proj", "k_proj", "q_proj", "down_proj", "up_proj", "gate_proj"]


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def stored_bytes(fmt, n, k):
    """Bytes of an n × k weight as docs/formats tells them; n is a multiple of 16 in all models compared here."""
    spans = -(-k // 256)
    per_row = {
        "k2": k / 4 + k / 32 * 0.75 + 2, "k2h": k / 4 + k / 16 * 0.625 + 2 * spans, "k3": k * 3 / 8 + k / 32 * 0.75 + 2,
        "k4": k / 2 + k / 32 + 4, "q6": k * 3 / 4 + k / 16 + 2 * spans, "q8": k + k / 16,
    }[fmt]
    return round(n * per_row)


def mixture(shapes, target):
    """name -> format. The tensors that come first in the order get the larger format."""
    layers = max(int(re.search(r"layers\.(\d+)", n).group(1)) for n in shapes) + 1

    def order(name):
        layer = int(re.search(r"layers\.(\d+)", name).group(1))
        part = next(i for i, p in enumerate(PARTS) if p in name)
        return (part, min(layer, layers - 1 - layer), layer, name)

    names = sorted(shapes, key=order)
    total = {f: sum(stored_bytes(f, *shapes[n]) for n in names) for f in LADDER}
    low = max((f for f in LADDER if total[f] <= target), key=lambda f: total[f], default=None)
    if low is None:
        return None
    chosen, left = dict.fromkeys(names, low), target - total[low]
    high = LADDER[LADDER.index(low) + 1]
    for name in names:
        more = stored_bytes(high, *shapes[name]) - stored_bytes(low, *shapes[name])
        if more <= left:
            chosen[name] = high
            left -= more
    return chosen


def recipe(chosen, method):
    rules = ['  - {id: eight, match: {class: [embed, lm_head]}, set: {format: q8, method: auto}}']
    for fmt in LADDER:
        names = [n for n, f in chosen.items() if f == fmt]
        if names:
            listed = ", ".join(names)
            rules.append(f"  - {{id: {fmt}, match: {{name: [{listed}]}}, set: {{format: {fmt}, method: {method}}}}}")
    return "version: 1\ndefaults: {format: keep, method: auto}\nrules:\n" + "\n".join(rules) + "\n"


def rest_bytes(pack, names):
    """Bytes of these tensors in a pack, every plane and padding row included; and of all its shards."""
    entries = {}
    for shard in Path(pack).glob("*.safetensors"):
        entries.update(header(shard)[0])
    size = {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in entries.items()}
    return sum(size[n] for n in names), sum(p.stat().st_size for p in Path(pack).glob("*.safetensors"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("src")
    p.add_argument("work", type=Path)
    p.add_argument("--ashlar", required=True)
    p.add_argument("--stats")
    p.add_argument("--eval", required=True)
    p.add_argument("--methods", default="search,gptq")
    p.add_argument("--only")
    p.add_argument("--uniform")
    p.add_argument("--max-tokens", default="51200")
    p.add_argument("--calibrate", action="append", default=[], help="one stream: convert --calibrate TEXT instead of --stats")
    a = p.parse_args()
    entries = header(Path(a.src) / "model.safetensors")[0]
    shapes = {n: e["shape"] for n, e in entries.items() if "layers." in n and len(e["shape"]) == 2 and "mlp.gate." not in n}
    done = {}
    for name, target, chosen in targets(a, shapes):
        for method in a.methods.split(","):
            # Two files of the peer may have the same bytes.
            key = (method, *sorted(chosen.items()))
            done[key] = line = {**(done.get(key) or measure(a, chosen, method, shapes)), "peer": name}
            if target:
                line["share"] = line["rest"] / target["rest"]
            with open(a.work / "ours.jsonl", "a") as f:
                f.write(json.dumps(line) + "\n")
            kl = line["eval"]["kl"]["mean"]
            against = f"bytes x {line['share']:.4f}, KL x {kl / target['eval']['kl']['mean']:.3f}" if target else ""
            print(f"{name:8} {line['method']:11} {line['bpw']:.3f} bpw KL {kl:.6f} {against} {line['formats']}", flush=True)


def targets(a, shapes):
    """What is to be made: a name, the peer's figures if it is compared with one, the format of every tensor."""
    if a.uniform:
        return [(f, None, dict.fromkeys(shapes, f)) for f in a.uniform.split(",")]
    peers = [json.loads(line) for line in open(a.work / "peer.jsonl")]
    return [(p["type"], p, mixture(shapes, p["rest"])) for p in peers if not a.only or p["type"] in a.only.split(",")]


def measure(a, chosen, method, shapes):
    path, pack = a.work / "recipe.yaml", a.work / "pack"
    path.write_text(recipe(chosen, method))
    known = [x for text in a.calibrate for x in ("--calibrate", text)] or ["--stats", a.stats]
    if method == "rtn":
        known = []
    run(a.ashlar, "convert", a.src, "-o", pack, "--recipe", path, "--force", "--quiet", *known)
    rest, shards = rest_bytes(pack, shapes)
    report = json.loads(run(a.ashlar, "eval", pack, "--text", a.eval, "--reference", a.src, "--ctx", "256", "--max-tokens",
                            a.max_tokens, "--activations", "f32", "--json", "--quiet"))
    weights = sum(n * k for n, k in shapes.values())
    return {"method": ("stream " if a.calibrate else "") + method, "rest": rest, "shards": shards,
            "bpw": 8 * rest / weights, "formats": {f: n for f in LADDER if (n := list(chosen.values()).count(f))}, "eval": report}


if __name__ == "__main__":
    main()
