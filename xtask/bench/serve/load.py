"""Load on an OpenAI-compatible server: tokens per second, time to the first token and between tokens, for several numbers of clients.

    python3 load.py --url http://127.0.0.1:8080 [--clients 1,2,4,8,16,32] [--requests 4] [--tokens 48] [--seed 1]

Each client sends `--requests` streamed requests one after another, with prompts of mixed lengths (the same for every server that is
measured with the same seed). A request that fails, ends early or is not answered within ten minutes is counted as lost. Needs
nothing but Python.
"""
import argparse
import asyncio
import json
import random
import statistics
import time
from urllib.parse import urlparse

WORDS = "the of and to in that he shall unto for his a they be is him not them with it all thou was which my came".split()
HEAD = "| | clients | tokens/s | first token, s: p50, p99 | between tokens, ms: p50, p99 | lost |\n|---|---|---|---|---|---|"


def prompt(random_):
    """Mostly short, some long."""
    return " ".join(random_.choice(WORDS) for _ in range(random_.choice([8, 16, 32, 64, 200])))


async def request(url, body):
    """Times of the pieces of one streamed answer, from sending on; the answer must have all its tokens."""
    parts = urlparse(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    data = json.dumps(body).encode()
    begin = time.perf_counter()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    times, reason, done = [], None, False
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            done = True
        elif line.startswith(b"data: ") and (choices := json.loads(line[6:]).get("choices")):
            reason = choices[0].get("finish_reason") or reason
            if choices[0].get("text"):
                times.append(time.perf_counter() - begin)
    writer.close()
    if not done or reason != "length":
        raise ConnectionError(f"the answer broke off: {reason}")
    # Random weights may say nothing but parts of characters, which a server need not tell.
    return times or [time.perf_counter() - begin]


async def client(a, seed, results):
    random_ = random.Random(seed)
    for _ in range(a.requests):
        body = {"prompt": prompt(random_), "max_tokens": a.tokens, "temperature": 0, "stream": True, "ignore_eos": True}
        try:
            results.append(await asyncio.wait_for(request(a.url, body), 600))
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            results.append(error)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def measure(a, clients):
    results = []
    begin = time.perf_counter()
    await asyncio.gather(*(client(a, a.seed * 1000 + i, results) for i in range(clients)))
    took = time.perf_counter() - begin
    good = [times for times in results if isinstance(times, list)]
    # A piece may hold more than one token: what a step takes is the time of the answer by its tokens too.
    between = [b - c for times in good for c, b in zip(times, times[1:])]
    first = [times[0] for times in good]
    if not good:
        raise SystemExit(f"no request was answered; the first: {results[0]!r}")
    return {"clients": clients, "tokens_per_s": len(good) * a.tokens / took, "lost": len(results) - len(good),
            "first": [statistics.median(first), percentile(first, 0.99)],
            "between": [statistics.median(between) if between else float("nan"), percentile(between, 0.99)]}


def warm(a):
    """One request that is not measured: weights come into memory with it."""
    asyncio.run(request(a.url, {"prompt": "the " * 32, "max_tokens": 8, "temperature": 0, "stream": True, "ignore_eos": True}))


def line(name, row):
    (f50, f99), (b50, b99) = row["first"], row["between"]
    return f"| {name} | {row['clients']} | {row['tokens_per_s']:.1f} | {f50:.2f}, {f99:.2f} | {1e3 * b50:.0f}, {1e3 * b99:.0f} | {row['lost']} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", required=True)
    p.add_argument("--clients", default="1,2,4,8,16,32")
    p.add_argument("--requests", type=int, default=4)
    p.add_argument("--tokens", type=int, default=48)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--name", default="")
    a = p.parse_args()
    print(HEAD)
    for clients in a.clients.split(","):
        print(line(a.name, asyncio.run(measure(a, int(clients)))), flush=True)


if __name__ == "__main__":
    main()
