"""llama.cpp's side of the comparison: convert, imatrix, quantize, back to F32, evaluate.

    python3 peer.py SRC WORK --llama LLAMA_CPP_FOLDER --bin FOLDER_WITH_PROGRAMS --ashlar PROGRAM \\
        --calibration TEXT --eval TEXT [--types IQ4_XS,Q3_K,…] [--pre qwen2]

Embeddings and head Q8_0, router F32, all other matrices one type (--pure), with an importance matrix from TEXT.
Results are lines of JSON in WORK/peer.jsonl.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# IQ2_M is the file type whose pure tensor type is IQ2_S; that of IQ2_S is IQ2_XS.
TYPES = "IQ4_XS,Q4_K_S,IQ3_S,Q3_K_S,IQ3_XXS,IQ2_M,IQ2_S,Q2_K_S"


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("src")
    p.add_argument("work", type=Path)
    for option in ("llama", "bin", "ashlar", "calibration", "eval"):
        p.add_argument("--" + option, required=True)
    p.add_argument("--types", default=TYPES)
    p.add_argument("--pre", default="qwen2")
    p.add_argument("--max-tokens", default="51200")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    base, imatrix = a.work / "f32.gguf", a.work / "imatrix.gguf"
    if not base.exists():
        run(sys.executable, HERE / "convert_gguf.py", a.llama, a.pre, a.src, "--outfile", base, "--outtype", "f32")
    if not imatrix.exists():
        run(f"{a.bin}/llama-imatrix", "-m", base, "-f", a.calibration, "-o", imatrix, "-c", "512", "--no-ppl", "-ngl", "0")
    for kind in a.types.split(","):
        out = a.work / f"{kind}.gguf"
        log = run(f"{a.bin}/llama-quantize", "--pure", "--imatrix", imatrix, "--token-embedding-type", "q8_0",
                  "--output-tensor-type", "q8_0", base, out, kind)
        fallbacks = sorted({line.split("falling back to")[1].strip() for line in log.stderr.splitlines() if "falling back" in line})
        found = run(sys.executable, HERE / "dequantize.py", a.llama, out, a.src, a.work / "dequantized")
        report = run(a.ashlar, "eval", a.work / "dequantized", "--text", a.eval, "--reference", a.src, "--ctx", "256",
                     "--max-tokens", a.max_tokens, "--activations", "f32", "--json", "--quiet")
        line = {"type": kind, **json.loads(found.stdout), "fallback": fallbacks, "eval": json.loads(report.stdout)}
        with open(a.work / "peer.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        print(kind, f"{line['bpw']:.3f} bpw", "KL", line["eval"]["kl"]["mean"], flush=True)


main()
