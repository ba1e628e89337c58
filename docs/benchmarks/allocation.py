"""The two experiments of allocation.md: predicted against measured KL over a range of targets, and the solver against
mixes made by hand at the same size. Python 3, standard library only.

    python3 docs/benchmarks/allocation.py ASHLAR MODEL STATS TEXT WORK [targets|mixes|all]

STATS comes from `ASHLAR calibrate MODEL -o STATS --sensitivity`. Embedding and head have q8 on all sides; a bit per weight
here is a bit of attention and experts (or MLPs), per weight of these.
"""
import json
import os
import shutil
import subprocess
import sys

ashlar, model, stats, text, work = sys.argv[1:6]
what = sys.argv[6] if len(sys.argv) > 6 else "all"
os.makedirs(work, exist_ok=True)
MLP = "[experts, mlp, shared_expert]"
ALLOW = "allow: [k2, k2h, k3, k4, q6, q8]"
ENDS = "  - {id: ends, match: {class: [embed, lm_head]}, set: {format: q8}}\n"
SOLVED = f"""version: 1
rules:
{ENDS}  - {{id: attn, match: {{class: attn}}, set: {{format: k3, {ALLOW}}}}}
  - {{id: mlp, match: {{class: {MLP}}}, set: {{format: k3, {ALLOW}}}}}
budget: {{bpw: 3, solve: [attn, mlp]}}
"""


def run(*arguments, below_floor=None):
    done = subprocess.run([ashlar, *map(str, arguments), "--quiet", "--json"], capture_output=True, text=True)
    if below_floor is not None and "less than the smallest mix" in done.stderr:
        return below_floor
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout)


def recipe(name, text):
    path = os.path.join(work, name + ".yaml")
    with open(path, "w") as file:
        file.write(text)
    return path


def plan(path, *more, **otherwise):
    return run("plan", model, "--recipe", path, "--stats", stats, *more, **otherwise)


def measure(path, *more):
    """Mean KL of the pack that a recipe makes, its interval, its bytes."""
    out = os.path.join(work, "pack")
    shutil.rmtree(out, ignore_errors=True)
    done = run("convert", model, "-o", out, "--recipe", path, "--stats", stats, "--force", "--restart", *more)
    kl = run("eval", out, "--text", text, "--reference", model, "--ctx", 256, "--max-tokens", 16384, "--activations", "f32")["kl"]
    return kl["mean"], kl["ci95"], done["total_bytes"]


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(i) for i in range(len(values))]


base = recipe("solved", SOLVED)
flat = run("plan", model, "--recipe", recipe("flat", SOLVED.split("budget")[0]))
inner = [c for c in flat["classes"] if c["class"] in ("attn", "experts", "mlp", "shared_expert")]
weights, fixed = sum(c["params"] for c in inner), flat["total_bytes"] - sum(c["bytes"] for c in inner)
with open(os.path.join(model, "config.json")) as file:
    layers = json.load(file)["num_hidden_layers"]


def target(bpw):
    return round(fixed + bpw * weights / 8)


def targets():
    rows = []
    for bpw in (2.25, 2.4, 2.55, 2.7, 3.0, 3.3, 3.8, 4.3, 5.0, 6.0):
        planned = plan(base, "--target-size", target(bpw), below_floor={})
        if not planned:
            print(f"| {bpw} | below the smallest mix of this model |", flush=True)
            continue
        predicted = planned["allocation"]["predicted"]
        kl, ci, size = measure(base, "--target-size", target(bpw))
        rows.append((predicted["kl"], kl))
        print(f"| {bpw} | {size} | {size / target(bpw):.4%} | {predicted['kl']:.5f} ({predicted['low']:.5f} to {predicted['high']:.5f}) | "
              f"{kl:.5f} ({ci[0]:.5f} to {ci[1]:.5f}) | {kl / predicted['kl']:.2f} |", flush=True)
    a, b = (ranks([r[i] for r in rows]) for i in (0, 1))
    n = len(rows)
    print(f"rank correlation {1 - 6 * sum((x - y) ** 2 for x, y in zip(a, b)) / (n * (n * n - 1)):.3f}; "
          f"measured/predicted {min(k / p for p, k in rows):.2f} to {max(k / p for p, k in rows):.2f}")


def mix(name, starts, up):
    """A mix by hand, brought to the size of the solver's: the first of `starts` (formats of attention, gate and up, down)
    that fits; then `up` lists selectors that get their format in this order, the last one for as many experts as fit."""
    size = target(2.7)
    fits = lambda text: run("plan", model, "--recipe", recipe(name, text))["total_bytes"] <= size
    for attn, gate_up, down in starts:
        rules = f"version: 1\nrules:\n{ENDS}  - {{match: {{class: attn}}, set: {{format: {attn}}}}}\n"
        rules += f"  - {{match: {{class: {MLP}}}, set: {{format: {gate_up}}}}}\n  - {{match: {{class: {MLP}, proj: down}}, set: {{format: {down}}}}}\n"
        if fits(rules):
            break
    else:
        sys.exit(f"{name}: no start fits")
    for selector, format in up:
        line = lambda more: f"  - {{match: {{{selector}{more}}}, set: {{format: {format}}}}}\n"
        if fits(rules + line("")):
            rules += line("")
            continue
        for experts in range(15, -1, -1):
            if "experts" in selector and fits(rules + line(f', experts: "0-{experts}"')):
                rules += line(f', experts: "0-{experts}"')
                break
    return recipe(name, rules)


def mixes():
    spread = sorted(range(layers), key=lambda l: (l * 5) % layers)
    edges = sorted(range(layers), key=lambda l: min(l, layers - 1 - l))
    of = lambda proj, order, format: [(f"class: experts, proj: {proj}, layers: {l}", format) for l in order]
    whole = lambda order, format: [(f"class: experts, layers: {l}", format) for l in order]
    attn_edges = [(f"class: attn, layers: {l}", "k4") for l in edges[:2]]
    low = [("k3", "k2h", "k2h"), ("k3", "k2", "k2")]
    by_hand = {
        "uniform": mix("uniform", low, whole(spread, "k3")),
        "down one step up": mix("down", low, of("down", spread, "k3")),
        "edge layers up": mix("edges", [("k3", "k2", "k2")], attn_edges + whole(edges, "k3")),
        "attention up": mix("attention", [(a, e, e) for a in ("q6", "k4") for e in ("k2h", "k2")], whole(spread, "k3")),
        "attention and down up": mix("both", [("q6", "k2", "k2h"), ("k4", "k2", "k2")], of("down", spread, "k3") + of("[gate, up]", spread, "k2h")),
    }
    rows = [(name, *measure(path)) for name, path in by_hand.items()]
    rows.append(("solver", *measure(base, "--target-size", target(2.7))))
    for name, kl, ci, size in rows:
        print(f"| {name} | {size} | {(size - fixed) * 8 / weights:.3f} | {kl:.5f} ({ci[0]:.5f} to {ci[1]:.5f}) |", flush=True)


if what in ("targets", "all"):
    targets()
if what in ("mixes", "all"):
    mixes()
