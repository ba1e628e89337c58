"""Prints what peer.py and ours.py measured as Markdown tables.

    python3 table.py NAME=WORK [NAME=WORK …]
"""
import json
import sys
from pathlib import Path

COLUMNS = ["rtn", "search", "gptq", "stream gptq"]


def kl(report):
    k = report["kl"]
    return f"{k['mean']:.5f}"


def main():
    for argument in sys.argv[1:]:
        name, work = argument.split("=", 1)
        read = lambda part: [json.loads(line) for line in open(Path(work) / part)]  # noqa: E731
        ours = {(o["peer"], o["method"]): o for o in read("ours.jsonl")}
        peers = read("peer.jsonl")
        methods = [m for m in COLUMNS if any((p["type"], m) in ours for p in peers)]
        print(f"### {name}\n")
        print("| llama.cpp | its bpw | its bytes (file) | its KL | ours: formats | our bytes (shards) | "
              + " | ".join(methods) + " | " + methods[-1] + " ÷ llama.cpp |")
        print("|---" * (7 + len(methods)) + "|")
        for p in peers:
            found = [ours.get((p["type"], m)) for m in methods]
            if not any(found):
                continue
            one = next(f for f in found if f)
            kinds = "+".join(sorted(t.lower() for t in p["types"]))
            mix = ", ".join(f"{n} {f}" for f, n in one["formats"].items())
            cells = [kl(f["eval"]) if f else "" for f in found]
            last = found[-1] or one
            ratio = last["eval"]["kl"]["mean"] / p["eval"]["kl"]["mean"]
            print(f"| {kinds} | {p['bpw']:.3f} | {p['rest']:,} ({p['file']:,}) | {kl(p['eval'])} | {mix} | "
                  f"{one['rest']:,} ({one['shards']:,}) | " + " | ".join(cells) + f" | **{ratio:.2f}** |")
        print()


main()
