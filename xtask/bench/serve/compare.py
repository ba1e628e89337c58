"""`ashlar serve` beside llama.cpp's server: the same shape, the same requests, in turns.

    python3 compare.py --ashlar ASHLAR --llama LLAMA_SERVER --pack FOLDER --gguf FILE [--clients 1,2,4,8,16,32] [--requests 2] [--tokens 32]
                       [--threads 2] [--rounds 1]

Both run all the time, and one at a time is asked: ours, theirs, ours, theirs, for every number of clients. Without --llama only ours.
"""
import argparse
import asyncio
import contextlib
import statistics

import load
from servers import server


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ashlar", required=True)
    p.add_argument("--pack", required=True)
    p.add_argument("--llama")
    p.add_argument("--gguf")
    p.add_argument("--clients", default="1,2,4,8,16,32")
    p.add_argument("--requests", type=int, default=2)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--threads", default="2")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--sequences", type=int, default=32)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    ours = [a.ashlar, "serve", a.pack, "--threads", a.threads, "--context", str(a.context), "--max-sequences", str(a.sequences), "--queue", "256", "--log-level", "warn"]
    theirs = [a.llama, "-m", a.gguf, "-t", a.threads, "-c", str(a.context * a.sequences), "-np", str(a.sequences), "--no-webui"]
    with contextlib.ExitStack() as stack:
        servers = [("ashlar", stack.enter_context(server(ours, "ashlar"))[0])]
        if a.llama:
            servers.append(("llama.cpp", stack.enter_context(server(theirs, "llama"))[0]))
        print(load.HEAD, flush=True)
        for clients in map(int, a.clients.split(",")):
            rates = {name: [] for name, _ in servers}
            for _ in range(a.rounds):
                # New prompts every time, the same for both: neither finds its own answers in its caches.
                a.seed += 1
                for name, a.url in servers:
                    row = asyncio.run(load.measure(a, clients))
                    rates[name].append(row["tokens_per_s"])
                    print(load.line(name, row), flush=True)
            if a.llama:
                ours_, theirs_ = (statistics.median(rates[n]) for n in ("ashlar", "llama.cpp"))
                print(f"| ratio | {clients} | {ours_ / theirs_:.2f} | | | |", flush=True)


main()
