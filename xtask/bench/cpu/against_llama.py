"""Speed of packs against llama.cpp's GGUF files of the same shape, in turn, and the ratios between them.

    python3 against_llama.py --ashlar PROGRAM --bin FOLDER_WITH_LLAMA_BENCH --ours q8=PACK,k4=PACK,… \\
        --theirs Q8_0=FILE,IQ4_XS=FILE,… [--threads 2] [--prompt 512] [--gen 64] [--rounds 3] [--bars dense|moe] [--out FILE]

Every round runs every pack and every file once, llama.cpp with `--repack 0` and `--repack 1`, so that a machine that is slow
for a minute is slow for both; medians over the rounds, of llama.cpp the better repacking. Nothing else should run.
`--bars` prints what the project asks of these ratios and whether they are met. FILE gets every single measurement as JSON.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

# Ours, theirs (the best of these), the least ratio, what is compared.
BARS = {
    "dense": [
        ("q8", ["Q8_0"], 1.1, "decode"),
        ("i4", ["Q4_0", "Q4_K_S", "Q4_K_M"], 1.1, "decode"),
        ("k4", ["IQ4_XS"], 1.4, "decode"),
        ("k3", ["Q3_K_S"], 1.3, "decode"),
        ("k2", ["Q2_K"], 1.3, "decode"),
        ("best", ["best"], 1.5, "prefill"),
        ("q8", ["best"], 1.5, "prefill"),
        ("q8", ["Q8_0"], 3.0, "prefill"),
    ],
    "moe": [
        ("best", ["best"], 1.8, "prefill"),
        ("q8", ["Q8_0"], 1.1, "decode"),
        ("k4", ["Q4_0", "Q4_K_S", "Q4_K_M"], 1.1, "decode"),
    ],
}


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)


def ours(a, pack):
    got = run(a.ashlar, "bench", pack, "--threads", a.threads, "--prompt-tokens", a.prompt, "--gen-tokens", a.gen,
              "--rounds", 1, "--json", "--quiet")
    prefill, decode = got["prefill"][0], got["decode"][0]
    return {"prefill": prefill["tokens_per_s"], "decode": decode["tokens_per_s"], "int8_share": prefill["int8_share"],
            "read_share": decode["read_share"], "bytes": decode["bytes_per_token"]}


def theirs(a, file, repack):
    got = run(Path(a.bin) / "llama-bench", "-m", file, "-t", a.threads, "-p", a.prompt, "-n", a.gen, "-r", 1,
              "--repack", repack, "-o", "json")
    return {"prefill" if line["n_gen"] == 0 else "decode": line["avg_ts"] for line in got}


def median(rows, key):
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def pairs(text):
    return dict(part.split("=", 1) for part in text.split(","))


def size(path):
    path = Path(path)
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files)


def best(table, names, work):
    """Name and speed of the fastest among these, `best` being all."""
    names = list(table) if names == ["best"] else [name for name in names if name in table]
    return max(((name, table[name][work]) for name in names), key=lambda pair: pair[1], default=(None, None))


def bars(kind, our_table, their_table):
    print("\n| ours | theirs | work | ratio | asked | met |\n|---|---|---|---|---|---|")
    for mine, others, least, work in BARS[kind]:
        name, speed = best(our_table, [mine], work)
        other, against = best(their_table, others, work)
        if name is None or other is None:
            print(f"| {mine} | {'/'.join(others)} | {work} | not measured | {least} | |")
            continue
        ratio = speed / against
        print(f"| {name} | {other} | {work} | {ratio:.2f} | {least} | {'yes' if ratio >= least else 'NO'} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("ashlar", "bin", "ours", "theirs"):
        p.add_argument("--" + option, required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--gen", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--bars", choices=BARS)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    packs, files = pairs(a.ours), pairs(a.theirs)
    measured = []
    for number in range(a.rounds):
        for (kind, name, path) in [("ours", *x) for x in packs.items()] + [("theirs", *x) for x in files.items()]:
            for repack in (0, 1) if kind == "theirs" else (None,):
                got = ours(a, path) if kind == "ours" else theirs(a, path, repack)
                measured.append({"kind": kind, "name": name, "repack": repack, "round": number, **got})
                print(f"round {number + 1} {name} {'' if repack is None else f'repack {repack} '}"
                      f"prefill {got['prefill']:.1f} decode {got['decode']:.1f}", file=sys.stderr, flush=True)
    if a.out:
        a.out.write_text(json.dumps(measured, indent=1))

    def table(kind, name):
        rows = [m for m in measured if m["kind"] == kind and m["name"] == name]
        ways = {m["repack"] for m in rows}
        return {work: max(median([m for m in rows if m["repack"] == way], work) for way in ways)
                for work in ("prefill", "decode")} | {k: median(rows, k) for k in ("int8_share", "read_share")}

    our_table = {name: table("ours", name) for name in packs}
    their_table = {name: table("theirs", name) for name in files}
    print(f"tokens/s, {a.threads} threads, medians of {a.rounds} rounds\n")
    print(f"| | file, MB | prefill of {a.prompt} | of int8 ceiling | decode of {a.gen} | of read bandwidth |\n|---|---|---|---|---|---|")
    for name, row in our_table.items():
        print(f"| ashlar {name} | {size(packs[name]) / 1e6:.0f} | {row['prefill']:.1f} | {100 * row['int8_share']:.0f} % "
              f"| {row['decode']:.1f} | {100 * row['read_share']:.0f} % |")
    for name, row in their_table.items():
        print(f"| llama.cpp {name} | {size(files[name]) / 1e6:.0f} | {row['prefill']:.1f} | | {row['decode']:.1f} | |")
    if a.bars:
        bars(a.bars, our_table, their_table)


main()
