"""How much a long system prompt costs: the first time, again, and after `kill -9` with `--kv-dir`.

    python3 restart.py --ashlar ASHLAR --model FOLDER [--tokens 4096] [--threads 2] [--kv FORMAT]

Times of a request's first token, seconds. The greedy text of 16 tokens must be the same every time.
"""
import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
import urllib.request

import load
from servers import server


def ask(url, prompt):
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    begin, first, text, usage = time.perf_counter(), None, "", None
    for raw in urllib.request.urlopen(request, timeout=3600):
        if not raw.startswith(b"data: {"):
            continue
        event = json.loads(raw[6:])
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            first = first or time.perf_counter() - begin
            text += choice["text"]
    return first, text, usage


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ashlar", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--threads", default="2")
    p.add_argument("--kv")
    a = p.parse_args()
    words = random.Random(1)
    # Every word of the list is one token or two; the server tells how many there were.
    prompt = " ".join(words.choice(load.WORDS) for _ in range(a.tokens))
    folder = tempfile.mkdtemp()
    base = [a.ashlar, "serve", a.model, "--threads", a.threads, "--context", str(2 * a.tokens + 512), "--max-sequences", "2", "--log-level", "warn"]
    base += ["--kv", a.kv] if a.kv else []
    texts = set()

    def one(name, url):
        first, text, usage = ask(url, prompt)
        texts.add(text)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"| {name} | {usage['prompt_tokens']} | {cached} | {first:.3f} |", flush=True)
        return first

    print("| | tokens of the prompt | found | first token, s |\n|---|---|---|---|")
    with server(base, "plain") as (url, _):
        one("no folder", url)
    with server([*base, "--kv-dir", folder], "first") as (url, process):
        cold = one("first time", url)
        one("again, same server", url)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with server([*base, "--kv-dir", folder], "second") as (url, _):
        warm = one("after kill -9 and a restart", url)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"\n{cold / warm:.1f} times faster; {size / 1e6:.1f} MB on disk; texts {'equal' if len(texts) == 1 else 'DIFFER'}")
    shutil.rmtree(folder)
    raise SystemExit(len(texts) != 1)


main()
