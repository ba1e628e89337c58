"""Tokens per second of `ashlar serve` under placements, with one client and with several: more clients must never get less in all.

    python3 placements.py --ashlar ASHLAR --pack FOLDER --place "" --place "--device virtual:0 --vram-limit 800MiB" --place "--ram-limit 1GiB"
                          [--clients 1,8] [--requests 2] [--tokens 32] [--threads 2] [--rounds 1]

One server at a time, since they may share what memory there is. Before it is measured each answers one request.
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
    p.add_argument("--place", action="append", required=True)
    p.add_argument("--clients", default="1,8")
    p.add_argument("--requests", type=int, default=2)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--threads", default="2")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--seed", type=int, default=1)
    return p.parse_args()


def main():
    a = arguments()
    clients = [int(n) for n in a.clients.split(",")]
    print(load.HEAD, flush=True)
    for place in a.place:
        command = [a.ashlar, "serve", a.pack, "--threads", a.threads, "--context", str(a.context), "--max-sequences", str(max(clients)), "--log-level", "warn"]
        rates = {n: [] for n in clients}
        with contextlib.ExitStack() as stack:
            a.url = stack.enter_context(server([*command, *shlex.split(place)], "placement"))[0]
            load.warm(a)
            for _ in range(a.rounds):
                a.seed += 1
                for n in clients:
                    row = asyncio.run(load.measure(a, n))
                    rates[n].append(row["tokens_per_s"])
                    print(load.line(place or "all in memory, one device", row), flush=True)
        first, last = (statistics.median(rates[n]) for n in (clients[0], clients[-1]))
        print(f"| {clients[-1]} / {clients[0]} clients | | {last / first:.2f} | | | |", flush=True)


main()
