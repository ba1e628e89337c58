#!/usr/bin/env python3
"""Write calibration/manifest.json, or with --check verify that it is up to date.

Needs the `tokenizers` package for the token counts. With `--check --no-tokens`
only names, sizes and hashes are compared, which needs nothing but Python.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOKENIZER = "tests/fixtures/demo-moe/tokenizer.json"
MANIFEST = HERE / "manifest.json"

# name -> (kind, natural languages as BCP 47 tags, then formal languages)
FILES = {
    "01-fiction.txt": ("fiction", ["en"], []),
    "02-essays-letters.txt": ("essays, letters", ["en"], []),
    "03-news-howto.txt": ("news reports, instructions, travel", ["en"], []),
    "04-dialogue.txt": ("dialogue, transcripts, chat", ["en"], []),
    "05-assistant-chats.txt": ("user/assistant turns, step-by-step reasoning", ["en"], ["python"]),
    "06-code-python-rust.txt": ("code", ["en"], ["python", "rust"]),
    "07-code-c-js-sql-shell.txt": (
        "code", ["en"],
        ["c", "javascript", "typescript", "sql", "shell", "go", "haskell"],
    ),
    "08-config-diffs-logs.txt": (
        "configuration, markup, diffs, logs", ["en"],
        ["json", "yaml", "toml", "ini", "nginx", "make", "html", "css", "diff", "xml",
         "dockerfile", "protobuf", "http", "icalendar"],
    ),
    "09-mathematics.txt": ("mathematics", ["en"], ["latex"]),
    "10-science-technical.txt": ("science, technical reports", ["en"], []),
    "11-tables-markdown.txt": ("tables, lists, markdown", ["en", "fr"], ["markdown", "csv", "tsv"]),
    "12-languages-european.txt": (
        "multilingual prose",
        ["de", "fr", "es", "it", "pt", "ru", "nl", "pl", "sv", "tr", "el", "uk", "vi", "la"], [],
    ),
    "13-languages-asia-africa.txt": (
        "multilingual prose",
        ["zh-Hans", "zh-Hant", "ja", "ko", "ar", "hi", "bn", "ta", "th", "fa", "he", "sw", "id", "am"],
        [],
    ),
    "14-legal-medical-business.txt": ("legal, medical, business", ["en"], []),
    "15-noise-and-fragments.txt": ("noise, fragments, identifiers, symbols", ["en"], []),
    "16-reasoning-and-reference.txt": ("reasoning, reference, verse", ["en"], []),
}


def load_tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(HERE.parent / TOKENIZER))


def build(count_tokens=True):
    found = sorted(p.name for p in HERE.glob("*.txt"))
    if found != sorted(FILES):
        sys.exit(f"files and the table in {Path(__file__).name} differ: "
                 f"{sorted(set(found) ^ set(FILES))}")
    tokenizer = load_tokenizer() if count_tokens else None
    rows = []
    for name in found:
        data = (HERE / name).read_bytes()
        text = data.decode("utf-8")  # fails loudly on bad UTF-8
        kind, languages, formal = FILES[name]
        row = {
            "name": name,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "kind": kind,
            "languages": languages,
            "formal_languages": formal,
        }
        if tokenizer:
            row["tokens_demo_moe"] = len(tokenizer.encode(text, add_special_tokens=False).ids)
        rows.append(row)
    totals = {"files": len(rows), "bytes": sum(r["bytes"] for r in rows)}
    if tokenizer:
        totals["tokens_demo_moe"] = sum(r["tokens_demo_moe"] for r in rows)
    return {
        "version": 1,
        "license": "MIT OR Apache-2.0",
        "tokenizer_demo_moe": TOKENIZER,
        "files": rows,
        "totals": totals,
    }


def without_tokens(manifest):
    strip = lambda d: {k: v for k, v in d.items() if k != "tokens_demo_moe"}
    return {**manifest, "files": [strip(r) for r in manifest["files"]],
            "totals": strip(manifest["totals"])}


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--check", action="store_true", help="verify, write nothing")
    ap.add_argument("--no-tokens", action="store_true", help="with --check: skip token counts")
    args = ap.parse_args()
    if args.no_tokens and not args.check:
        ap.error("--no-tokens goes with --check")

    fresh = build(count_tokens=not args.no_tokens)
    if args.check:
        stored = json.loads(MANIFEST.read_text(encoding="utf-8"))
        if args.no_tokens:
            stored = without_tokens(stored)
        if stored != fresh:
            sys.exit("manifest.json is out of date: run calibration/make_manifest.py")
        print("manifest.json is up to date")
        return
    text = json.dumps(fresh, indent=2, ensure_ascii=False) + "\n"
    MANIFEST.write_bytes(text.encode("utf-8"))
    print(json.dumps(fresh["totals"]))


if __name__ == "__main__":
    main()
