"""One stream against two steps: mean KL divergence over several disjoint calibration texts.

    python3 one_stream.py SRC WORK --ashlar PROGRAM --texts DIR [--eval TEXT] [--formats k4,k3,k2] [--classes experts] [--subsets 4]

The texts of DIR (calibration/ of this repository) but HELD, which are evaluated on unless --eval names another, are cut into
pieces of 1200 characters, and these dealt out to the subsets. For each subset and format: `calibrate --hessians` and `convert --stats`, then
`convert --calibrate`, both evaluated with f32 activations. Prints a line per pair, then per format the mean of the logarithms
of the ratios and its standard error.
"""
import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

HELD = ("02-", "05-", "10-", "14-")


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("src")
    p.add_argument("work", type=Path)
    p.add_argument("--ashlar", required=True)
    p.add_argument("--texts", type=Path, required=True)
    p.add_argument("--eval")
    p.add_argument("--formats", default="k4,k3,k2")
    p.add_argument("--classes", default="attn, experts")
    p.add_argument("--subsets", type=int, default=4)
    p.add_argument("--max-tokens", default="8192")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    files = sorted(a.texts.glob("[0-9]*.txt"))
    held = a.work / "held.txt"
    held.write_text("\n\n".join(f.read_text() for f in files if f.name.startswith(HELD)))
    texts = [f.read_text() for f in files if not f.name.startswith(HELD)]
    pieces = [t[i : i + 1200] for t in texts for i in range(0, len(t), 1200)]
    ratios = {}
    for subset in range(a.subsets):
        text = a.work / f"subset-{subset}.txt"
        text.write_text("\n".join(pieces[subset :: a.subsets]))
        for fmt in a.formats.split(","):
            two, one = pair(a, text, fmt, a.eval or held)
            ratios.setdefault(fmt, []).append(math.log(one / two))
            print(f"{fmt} subset {subset}: two steps {two:.6f}, one stream {one:.6f}", flush=True)
    for fmt, logs in ratios.items():
        mean = sum(logs) / len(logs)
        error = math.sqrt(sum((x - mean) ** 2 for x in logs) / max(len(logs) - 1, 1) / len(logs))
        print(f"{fmt}: one stream / two steps {100 * mean:+.1f} % ± {100 * error:.1f}")


def pair(a, text, fmt, evaluated):
    recipe, stats = a.work / "recipe.yaml", a.work / f"{text.stem}.stats"
    recipe.write_text(f"version: 1\nrules:\n  - {{id: all, match: {{class: [{a.classes}]}}, set: {{format: {fmt}, method: gptq}}}}\n")
    if not stats.exists():
        run(a.ashlar, "calibrate", a.src, "-o", stats, "--hessians", "--ctx", 256, "--text", text)
    divergences = []
    for how in (["--stats", stats], ["--ctx", 256, "--calibrate", text]):
        pack = a.work / "pack"
        run(a.ashlar, "convert", a.src, "-o", pack, "--force", "--recipe", recipe, *how)
        said = run(a.ashlar, "eval", pack, "--text", evaluated, "--ctx", 256, "--max-tokens", a.max_tokens,
                   "--reference", a.src, "--activations", "f32", "--json")
        divergences.append(json.loads(said)["kl"]["mean"])
        shutil.rmtree(pack)
    return divergences


main()
