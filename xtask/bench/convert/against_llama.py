"""Conversion against llama.cpp's two steps (convert_hf_to_gguf to BF16, then llama-quantize), alternating.

    python3 against_llama.py SRC WORK --ashlar PROGRAM --llama LLAMA_CPP_FOLDER --bin FOLDER_WITH_PROGRAMS \\
        [--format k4 --type IQ4_XS] [--rounds 5] [--pre PRE_TYPE] [--stats S]

The source is read once before the clock starts, so that it lies in the page cache; every run ends when its output is
synced. Both sides use all cores. Prints every run, the medians and their ratio.
"""
import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

QUALITY = Path(__file__).parent.parent / "quality"


def timed(*commands, out):
    start = time.monotonic()
    for command in commands:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    subprocess.run(["sync", *map(str, out)], check=True)
    return time.monotonic() - start


def warm(folder):
    for path in Path(folder).glob("*.safetensors"):
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 24):
                pass


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("src")
    p.add_argument("work", type=Path)
    for option in ("ashlar", "llama", "bin"):
        p.add_argument("--" + option, required=True)
    p.add_argument("--format", default="k4")
    p.add_argument("--type", default="IQ4_XS")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--pre", default="qwen2")
    p.add_argument("--stats")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    recipe, pack, first, second = (a.work / n for n in ("recipe.yaml", "pack", "bf16.gguf", "quantized.gguf"))
    recipe.write_text("version: 1\ndefaults: {format: keep, method: auto}\nrules:\n"
                      f"  - {{id: all, match: {{name: \"*\"}}, set: {{format: {a.format}}}}}\n")
    stats = ["--stats", a.stats] if a.stats else []
    ours, theirs = [], []
    for _ in range(a.rounds):
        warm(a.src)
        shutil.rmtree(pack, ignore_errors=True)
        ours.append(timed([a.ashlar, "--quiet", "convert", a.src, "-o", pack, "--recipe", recipe, *stats], out=[]))
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
        warm(a.src)
        convert = [sys.executable, QUALITY / "convert_gguf.py", a.llama, a.pre, a.src, "--outfile", first, "--outtype", "bf16"]
        theirs.append(timed(convert, out=[first]))
        theirs[-1] = (theirs[-1], timed([f"{a.bin}/llama-quantize", first, second, a.type], out=[second]))
        print(f"ashlar {ours[-1]:.2f} s, llama.cpp {theirs[-1][0]:.2f} + {theirs[-1][1]:.2f} s", flush=True)
    mine, peer = statistics.median(ours), statistics.median(sum(t) for t in theirs)
    print(f"{a.format} against {a.type}, medians of {a.rounds}: {mine:.2f} s, {peer:.2f} s, ratio {peer / mine:.1f}")


if __name__ == "__main__":
    main()
