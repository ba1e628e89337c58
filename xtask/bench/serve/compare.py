"""`ashlar serve` beside llama.cpp's server: the same shape, the same requests, in turns.

    python3 compare.py --ashlar ASHLAR --pack FOLDER [--llama LLAMA_SERVER --gguf FILE] [--llama-args "-fa on"]... [--ashlar-args "--kv q8"]
                       [--clients 1,2,4,8,16,32] [--requests 2] [--tokens 32] [--threads 2] [--rounds 1]

All run all the time, and one at a time is asked: ours, theirs, ours, theirs, for every number of clients, after one request to each that
is not measured. `--llama-args` may be given
several times: a server of theirs for each, and the ratio is to the best of them. Without --llama only ours.
"""
import argparse
import asyncio
import contextlib
import shlex
import statistics

import load
from servers import server


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ashlar", required=True)
    p.add_argument("--pack", required=True)
    p.add_argument("--ashlar-args", default="")
    p.add_argument("--llama")
    p.add_argument("--gguf")
    p.add_argument("--llama-args", action="append")
    p.add_argument("--clients", default="1,2,4,8,16,32")
    p.add_argument("--requests", type=int, default=2)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--threads", default="2")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--sequences", type=int, default=32)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--seed", type=int, default=1)
    return p.parse_args()


def commands(a):
    """What is measured, by name; the first is ours."""
    ours = [a.ashlar, "serve", a.pack, "--threads", a.threads, "--context", str(a.context), "--max-sequences", str(a.sequences), "--queue", "256"]
    yield "ashlar", [*ours, "--log-level", "warn", *shlex.split(a.ashlar_args)]
    theirs = [a.llama, "-m", a.gguf, "-t", a.threads, "-c", str(a.context * a.sequences), "-np", str(a.sequences), "--no-webui"]
    for more in (a.llama_args or [""]) if a.llama else []:
        yield f"llama.cpp {more}".strip(), [*theirs, *shlex.split(more)]


def main():
    a = arguments()
    with contextlib.ExitStack() as stack:
        servers = [(name, stack.enter_context(server(command, f"server-{i}"))[0]) for i, (name, command) in enumerate(commands(a))]
        for _, a.url in servers:
            load.warm(a)
        print(load.HEAD, flush=True)
        for clients in map(int, a.clients.split(",")):
            rates = {name: [] for name, _ in servers}
            for _ in range(a.rounds):
                # New prompts every time, the same for all: nobody finds its own answers in its caches.
                a.seed += 1
                for name, a.url in servers:
                    row = asyncio.run(load.measure(a, clients))
                    rates[name].append(row["tokens_per_s"])
                    print(load.line(name, row), flush=True)
            ours, *theirs = (statistics.median(all_) for all_ in rates.values())
            if theirs:
                print(f"| ratio to the best | {clients} | {ours / max(theirs):.2f} | | | |", flush=True)


main()
