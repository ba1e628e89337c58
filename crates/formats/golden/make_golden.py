#!/usr/bin/env python3
"""Golden vectors of every format, made from the formulas in docs/formats/ with numpy alone.

Shares no code with the Rust crates: it places and computes one value at a time, as the pages word it.
Run it in this folder: python3 make_golden.py. It writes one JSON file per spec; hex strings are little-endian bytes.

  decode: random planes (any code, scales of any size and sign) in both orders, and the f32 values they stand for
  rtn:    bf16 weights, and the x16 planes that `rtn` (with outliers beyond 2 sigma) makes of them
"""

import json
import numpy as np

F = np.float32
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
IQ4NL = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1 = [0, .5, 1, 1.5, 2, 3, 4, 6, -0.0, -.5, -1, -1.5, -2, -3, -4, -6]  # by code
SIGMA = 2.0

# text: (kind, bits, group, scale type, zero points)
SPECS = {
    "q8": ("q8", 8, 32, "f16", False),
    "i4:g32": ("i4", 4, 32, "f16", False), "i4:g64": ("i4", 4, 64, "f16", False), "i4:g128": ("i4", 4, 128, "f16", False),
    "i4:g32,zp": ("i4", 4, 32, "f16", True), "i4:g64,zp": ("i4", 4, 64, "f16", True), "i4:g128,zp": ("i4", 4, 128, "f16", True),
    "nf4:g64": ("nf4", 4, 64, "f16", False), "nf4:g32": ("nf4", 4, 32, "f16", False),
    "iq4nl": ("iq4nl", 4, 32, "f16", False), "mxfp4": ("mxfp4", 4, 32, "e8m0", False),
    "fp8:128x128,f32": ("fp8", 8, 128, "f32", False), "fp8:128x128,e8m0": ("fp8", 8, 128, "e8m0", False),
    "fp8:128x128,bf16": ("fp8", 8, 128, "bf16", False),
}

SIXTEEN = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
EIGHT = [-63, -40, -23, -10, 1, 13, 28, 47]
FOUR = [-31, -13, 1, 17]
SIX_BITS = list(range(-32, 32))
# text: grids, bits of the code planes, group, columns of an outer scale (0: the row), its type,
# bits of a parameter, step and zero of inner scales (None: the parameter is an i8)
TWO_LEVEL = {
    "k4": ([SIXTEEN, [v + 4 for v in SIXTEEN]], [4], 32, 0, "f32", 8, (2, 127)),
    "k3": ([EIGHT, [v + 4 for v in EIGHT]], [2, 1], 32, 0, "f16", 6, (1, 16)),
    "k2": ([FOUR, [v + 5 for v in FOUR]], [2], 32, 0, "f16", 6, (1, 16)),
    "k2h": ([FOUR, [v + 5 for v in FOUR]], [2], 16, 256, "f16", 5, (1, 8)),
    "q6": ([SIX_BITS], [4, 2], 16, 256, "f16", 8, None),
}


def e4m3(code):
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


E4M3 = [e4m3(c) for c in range(256)]


def bf16_round(x):
    bits = np.asarray(x, F).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return bits.astype(np.uint32).view(F)


def scale_bytes(value, kind):
    if kind == "f16":
        return np.float16(value).tobytes()
    if kind == "f32":
        return F(value).tobytes()
    if kind == "bf16":
        return F(value).tobytes()[2:]
    return bytes([0 if value == 0 else int(np.log2(np.float64(value))) + 127])


def level(kind, code, zp):
    """What a code stands for before scaling; with zero points the code itself."""
    if kind == "q8":
        return code - 256 if code > 127 else code
    if kind == "i4":
        return code if zp else code - 8
    return {"nf4": NF4, "iq4nl": IQ4NL, "mxfp4": E2M1, "fp8": E4M3}[kind][code]


def place_x16(n, k, bits, codes):
    """Panels of 16 rows x 32 columns; a 64-byte vector has a 32-bit lane per row."""
    blocks = -(-n // 16)
    out = bytearray(blocks * 16 * k * bits // 8)
    panel = 512 * bits // 8
    for r in range(n):
        for c in range(k):
            start = (r // 16 * (k // 32) + c // 32) * panel
            row, column = r % 16, c % 32
            if bits == 1:
                bit = 64 * (column // 4) + 4 * row + column % 4
                out[start + bit // 8] |= int(codes[r][c]) << bit % 8
                continue
            lane = 32 // bits
            vector, byte, shift = column // lane, column % 4, bits * (column % lane // 4)
            out[start + 64 * vector + 4 * row + byte] |= int(codes[r][c]) << shift
    return bytes(out)


def place_rows(n, k, bits, codes):
    """Row-major; byte j of the S = 4 * bits bytes of 32 codes holds the codes j, j + S, j + 2S ..., lowest bits first."""
    out, size = bytearray(), 4 * bits
    for r in range(n):
        for first in range(0, k, 32):
            group = [int(c) for c in codes[r][first:first + 32]]
            out += bytes(sum(code << bits * i for i, code in enumerate(group[j::size])) for j in range(size))
    return bytes(out)


def place_parameters(n, groups, cells, size):
    """[row block][group][16 rows] for x16, [row][group] for rows; cells are bytes."""
    blocks = -(-n // 16)
    x16 = bytearray(blocks * groups * 16 * size)
    for r in range(n):
        for g in range(groups):
            at = ((r // 16 * groups + g) * 16 + r % 16) * size
            x16[at:at + size] = cells[r][g]
    return bytes(x16), b"".join(cells[r][g] for r in range(n) for g in range(groups))


def place_outliers(n, slots, pairs):
    rows = bytearray()
    for r in range(n):
        cells = b"".join(np.uint16(c).tobytes() + np.float16(d).tobytes() for c, d in pairs[r])
        rows += cells.ljust(4 * slots, b"\0")
    return bytes(rows).ljust(-(-n // 16) * 16 * slots * 4, b"\0"), bytes(rows)


def planes(spec, n, k, codes, scales, zeros, slots, pairs):
    kind, bits, group, scale, zp = spec
    both = [(place_x16(n, k, bits, codes), place_rows(n, k, bits, codes))]
    if kind == "fp8":
        cells = b"".join(scale_bytes(s, scale) for row in scales for s in row)
        both.append((cells, cells))
    else:
        cells = [[scale_bytes(s, scale) for s in row] for row in scales]
        both.append(place_parameters(n, k // group, cells, len(cells[0][0])))
    if zp:
        both.append(place_parameters(n, k // group, [[bytes([int(z)]) for z in row] for row in zeros], 1))
    if slots:
        both.append(place_outliers(n, slots, pairs))
    return [x.hex() for x, _ in both], [r.hex() for _, r in both]


def value(spec, r, c, codes, scales, zeros):
    kind, _, group, _, zp = spec
    s = scales[r // 128][c // 128] if kind == "fp8" else scales[r][c // group]
    zero = zeros[r][c // group] if zp else 0
    return F(F(level(kind, int(codes[r][c]), zp)) - F(zero)) * F(s)


def decode(spec, n, k, codes, scales, zeros, pairs):
    out = np.zeros((n, k), F)
    for r in range(n):
        for c in range(k):
            out[r, c] = value(spec, r, c, codes, scales, zeros)
        for c, d in pairs[r]:
            out[r, c] = F(out[r, c]) + F(np.float16(d))
    return out


def random_scale(rng, kind):
    if kind == "e8m0":
        return 2.0 ** int(rng.choice([-127, -126, -20, -3, 0, 5, 100]))
    mantissa = F(rng.choice([-1, 1])) * F(rng.uniform(0.5, 2))
    if kind == "f16":
        return F(np.float16(mantissa * F(2.0) ** int(rng.choice([-24, -20, -15, -8, 0, 12]))))
    x = mantissa * F(2.0) ** int(rng.choice([-30, -9, 0, 12]))
    return bf16_round(x)[()] if kind == "bf16" else F(x)


def random_case(rng, spec, n, k, slots):
    kind, bits, group, scale, zp = spec
    codes = rng.integers(0, 1 << bits, (n, k))
    if kind == "fp8":
        codes[(codes & 127) == 127] = 126
        scales = [[random_scale(rng, scale) for _ in range(-(-k // 128))] for _ in range(-(-n // 128))]
    else:
        scales = [[random_scale(rng, scale) for _ in range(k // group)] for _ in range(n)]
    zeros = rng.integers(0, 256, (n, k // group)) if zp else None
    pairs = [[(int(c), np.float16(rng.normal())) for c in sorted(rng.choice(k, slots, replace=False))] for _ in range(n)]
    x16, rows = planes(spec, n, k, codes, scales, zeros, slots, pairs)
    return {"n": n, "k": k, "x16": x16, "rows": rows, "values": decode(spec, n, k, codes, scales, zeros, pairs).tobytes().hex()}


def store_f16(wanted, peak, reach):
    """The nearest half; the next larger one where that leaves the peak more than half a step outside."""
    s = np.float16(wanted)
    if F(abs(F(s))) * F(reach + 0.5) < F(peak):
        s = np.nextafter(s, np.float16(np.copysign(np.inf, wanted)))
    return F(s)


def nearest(table, y):
    """Index into an ascending table; a value on a border belongs to the lower level."""
    borders = [F(F(F(a) + F(b)) * F(0.5)) for a, b in zip(table, table[1:])]
    return sum(y > b for b in borders)


def rtn_group(kind, zp, x):
    """Scale, zero point and codes of one group."""
    peak = F(np.abs(x).max())
    if kind == "mxfp4":
        s = F(0) if peak == 0 else F(2.0 ** max(int(np.floor(np.log2(np.float64(peak)))) - 2, -127))
        inverse = F(0) if s == 0 else F(1) / s
        ascending = sorted(set(E2M1))
        return s, 0, [E2M1.index(ascending[nearest(ascending, F(v) * inverse)]) for v in x]
    if zp:
        low, high = min(F(0), F(x.min())), max(F(0), F(x.max()))
        s = store_f16(F(high * F(.5) - low * F(.5)) / F(7.5), max(high, -low), 15)
        inverse = F(0) if s == 0 else F(1) / s
        zero = int(np.rint(np.clip(F(0) - low * inverse, F(0), F(15))))
        return s, zero, [int(np.rint(np.clip(F(v) * inverse, F(-zero), F(15 - zero)))) + zero for v in x]
    extreme = F(x[np.abs(x).argmax()])
    wanted, reach = {"q8": (peak / F(127), 127), "i4": (peak / F(7), 7), "nf4": (peak, 1), "iq4nl": (extreme / F(-127), 127)}[kind]
    s = store_f16(wanted, peak, reach)
    inverse = F(0) if s == 0 else F(1) / s
    y = [F(v) * inverse for v in x]
    if kind == "q8":
        return s, 0, [int(np.rint(np.clip(v, F(-127), F(127)))) & 255 for v in y]
    if kind == "i4":
        return s, 0, [int(np.rint(np.clip(v, F(-8), F(7)))) + 8 for v in y]
    return s, 0, [nearest(NF4 if kind == "nf4" else IQ4NL, v) for v in y]


def nearest_e4m3(x):
    """Nearest of the 253 distinct values, ties to the even mantissa, clipped at 448."""
    magnitude = abs(np.float64(x))
    table = np.array(E4M3[:127], np.float64)
    distance = np.abs(table - magnitude)
    best = np.flatnonzero(distance == distance.min())
    code = int(min(best, key=lambda c: c % 2))
    return code | (128 if np.signbit(x) else 0)


def rtn_fp8(w, scale):
    n, k = w.shape
    scales = []
    for r in range(0, n, 128):
        row = []
        for c in range(0, k, 128):
            wanted = F(np.abs(w[r:r + 128, c:c + 128]).max()) / F(448)
            if scale == "e8m0":
                wanted = F(2.0 ** np.ceil(np.log2(np.float64(wanted))))
            row.append(bf16_round(wanted)[()] if scale == "bf16" else F(wanted))
        scales.append(row)
    return scales, [[nearest_e4m3(w[r, c] / scales[r // 128][c // 128]) for c in range(k)] for r in range(n)]


def rtn_case(rng, spec, n, k, slots):
    kind, _, group, scale, zp = spec
    w = bf16_round((rng.standard_t(5, (n, k)) * rng.choice([1e-7, 0.02, 30], (n, 1))).astype(F))
    if k > group:
        w[2, :group] = 0
    base, chosen = w.copy(), [[] for _ in range(n)]
    for r in range(n if slots else 0):
        deviation = np.std(w[r].astype(np.float64))
        beyond = [c for c in range(k) if abs(np.float64(w[r, c])) > SIGMA * deviation]
        chosen[r] = sorted(sorted(beyond, key=lambda c: (-abs(w[r, c]), c))[:slots])
        base[r, chosen[r]] = 0
    zeros = None
    if kind == "fp8":
        scales, codes = rtn_fp8(base, scale)
    else:
        fits = [[rtn_group(kind, zp, base[r, c:c + group]) for c in range(0, k, group)] for r in range(n)]
        scales = [[f[0] for f in row] for row in fits]
        zeros = [[f[1] for f in row] for row in fits] if zp else None
        codes = [[c for f in row for c in f[2]] for row in fits]
    pairs = [[(c, np.float16(F(w[r, c]) - value(spec, r, c, codes, scales, zeros))) for c in chosen[r]] for r in range(n)]
    x16, _ = planes(spec, n, k, codes, scales, zeros, slots, pairs)
    return {"n": n, "k": k, "sigma": SIGMA, "weights_bf16": w.view(np.uint32).__rshift__(16).astype(np.uint16).tobytes().hex(), "x16": x16}


def inner_scale(spec, parameter):
    """Inner scale and grid that a parameter says."""
    scales = spec[6]
    if scales is None:
        return parameter - 256 if parameter > 127 else parameter, 0
    return scales[0] * (parameter >> 1) - scales[1], parameter & 1


def place_inner(n, groups, bits, parameters):
    """x16: per row block and group 8 bytes of low nibbles, then the bits above; rows: a byte each."""
    out = bytearray()
    for block in range(-(-n // 16)):
        for g in range(groups):
            of = [int(parameters[r][g]) if r < n else 0 for r in range(16 * block, 16 * block + 16)]
            if bits == 8:
                out += bytes(of)
                continue
            out += sum((p & 15) << 4 * r for r, p in enumerate(of)).to_bytes(8, "little")
            out += sum((p >> 4) << (bits - 4) * r for r, p in enumerate(of)).to_bytes(2 * (bits - 4), "little")
    return bytes(out), b"".join(bytes([int(parameters[r][g])]) for r in range(n) for g in range(groups))


def two_level_planes(spec, n, k, codes, parameters, outer, slots, pairs):
    _, widths, group, span, scale, bits, _ = spec
    both, shift = [], 0
    for width in widths:
        part = [[int(c) >> shift & (1 << width) - 1 for c in row] for row in codes]
        both.append((place_x16(n, k, width, part), place_rows(n, k, width, part)))
        shift += width
    both.append(place_inner(n, k // group, bits, parameters))
    cells = [[scale_bytes(s, scale) for s in row] for row in outer]
    both.append(place_parameters(n, -(-k // (span or k)), cells, len(cells[0][0])))
    if slots:
        both.append(place_outliers(n, slots, pairs))
    return [x.hex() for x, _ in both], [r.hex() for _, r in both]


def two_level_value(spec, r, c, k, codes, parameters, outer):
    grids, _, group, span, _, _, _ = spec
    inner, grid = inner_scale(spec, int(parameters[r][c // group]))
    return F(grids[grid][int(codes[r][c])]) * (F(outer[r][c // (span or k)]) * F(inner))


def two_level_random(rng, spec, n, k, slots):
    grids, widths, group, span, scale, bits, _ = spec
    codes = rng.integers(0, 1 << sum(widths), (n, k))
    parameters = rng.integers(0, 1 << bits, (n, k // group))
    outer = [[random_scale(rng, scale) for _ in range(-(-k // (span or k)))] for _ in range(n)]
    pairs = [[(int(c), np.float16(rng.normal())) for c in sorted(rng.choice(k, slots, replace=False))] for _ in range(n)]
    values = np.array([[two_level_value(spec, r, c, k, codes, parameters, outer) for c in range(k)] for r in range(n)], F)
    for r in range(n):
        for c, d in pairs[r]:
            values[r, c] = values[r, c] + F(d)
    x16, rows = two_level_planes(spec, n, k, codes, parameters, outer, slots, pairs)
    return {"n": n, "k": k, "x16": x16, "rows": rows, "values": values.tobytes().hex()}


def encode_grid(grid, x, scale, kept):
    """Codes and squared error of a group without its outliers, summed in f32 from the first column on."""
    inverse = F(0) if scale == 0 else F(1) / scale
    y = [F(v) * inverse for v in x]
    if len(grid) == 64:
        codes = [int(np.rint(np.clip(v, F(-32), F(31)))) + 32 for v in y]
    else:
        codes = [nearest(grid, v) for v in y]
    error = F(0)
    for v, code, counts in zip(x, codes, kept):
        d = F(v) - F(grid[code]) * scale
        error = error + d * d * F(counts)
    return codes, error


def two_level_rtn_span(spec, x, kept):
    """Outer scale, parameters and codes of the columns that share an outer scale."""
    grids, _, group, _, scale, bits, scales = spec
    step, zero = scales or (1, 128)
    last = (1 << bits - (len(grids) > 1)) - 1
    extremes = [F(part[np.abs(part).argmax()]) for part in (x[c:c + group] for c in range(0, len(x), group))]
    extreme = extremes[int(np.argmax(np.abs(extremes)))]
    product = grids[0][0] * -zero
    wanted = extreme / F(product)
    outer = store_f16(wanted, abs(extreme), product) if scale == "f16" else F(wanted)
    inverse = F(0) if outer == 0 else F(1) / outer
    parameters, codes = [], []
    for g, e in enumerate(extremes):
        units = np.clip(e / F(grids[0][0]) * inverse, F(-zero), F(step * last - zero))
        u = int(np.rint((units + F(zero)) / F(step)))
        part = slice(g * group, (g + 1) * group)
        tried = [encode_grid(grid, x[part], outer * F(step * u - zero), kept[part]) for grid in grids]
        grid = int(tried[0][1] > tried[-1][1])
        codes += tried[grid][0]
        parameters.append(u << 1 | grid if scales else (u - zero) & 255)
    return outer, parameters, codes


def two_level_rtn(rng, spec, n, k, slots):
    group, span = spec[2], spec[3] or k
    w = bf16_round((rng.standard_t(5, (n, k)) * rng.choice([1e-5, 0.02, 30], (n, 1))).astype(F))
    w[2, :group] = 0
    w[3] = 0
    base, chosen = w.copy(), [[] for _ in range(n)]
    for r in range(n if slots else 0):
        deviation = np.std(w[r].astype(np.float64))
        beyond = [c for c in range(k) if abs(np.float64(w[r, c])) > SIGMA * deviation]
        chosen[r] = sorted(sorted(beyond, key=lambda c: (-abs(w[r, c]), c))[:slots])
        base[r, chosen[r]] = 0
    outer, parameters, codes = [], [], []
    for r in range(n):
        kept = np.isin(np.arange(k), chosen[r], invert=True)
        fits = [two_level_rtn_span(spec, base[r, c:c + span], kept[c:c + span]) for c in range(0, k, span)]
        outer.append([f[0] for f in fits])
        parameters.append([p for f in fits for p in f[1]])
        codes.append([c for f in fits for c in f[2]])
    delta = lambda r, c: np.float16(w[r, c] - two_level_value(spec, r, c, k, codes, parameters, outer))
    pairs = [[(c, delta(r, c)) for c in chosen[r]] for r in range(n)]
    x16, _ = two_level_planes(spec, n, k, codes, parameters, outer, slots, pairs)
    return {"n": n, "k": k, "sigma": SIGMA, "weights_bf16": w.view(np.uint32).__rshift__(16).astype(np.uint16).tobytes().hex(), "x16": x16}


def float_file(rng, kind):
    n, k = 3, 40
    bits = {"f32": rng.normal(0, 1, (n, k)).astype(F).view(np.uint32), "f16": rng.integers(0, 0x7C00, (n, k)),
            "bf16": rng.integers(0, 0x7F80, (n, k))}[kind]
    if kind == "f32":
        data, values = bits.tobytes(), bits.view(F)
    elif kind == "f16":
        data, values = bits.astype(np.uint16).tobytes(), bits.astype(np.uint16).view(np.float16).astype(F)
    else:
        data, values = bits.astype(np.uint16).tobytes(), (bits.astype(np.uint32) << 16).view(F)
    w = bf16_round((rng.standard_t(5, (n, k)) * rng.choice([1e-7, 0.02, 30], (n, 1))).astype(F))
    w_bytes = w.view(np.uint32).__rshift__(16).astype(np.uint16).tobytes()
    encoded = {"f32": w.tobytes(), "f16": w.astype(np.float16).tobytes(), "bf16": w_bytes}[kind]
    return {"spec": kind, "decode": {"n": n, "k": k, "x16": [data.hex()], "rows": [data.hex()], "values": values.tobytes().hex()},
            "rtn": {"n": n, "k": k, "sigma": SIGMA, "weights_bf16": w_bytes.hex(), "x16": [encoded.hex()]}}


def main():
    np.seterr(over="ignore", under="ignore")
    rng = np.random.default_rng(20)
    for kind in ["f32", "f16", "bf16"]:
        write(float_file(rng, kind))
    for text, spec in SPECS.items():
        write_spec(rng, text, spec, 0)
    for text, slots in [("q8", 1), ("i4:g32,zp", 2), ("nf4:g64", 3), ("fp8:128x128,f32", 2)]:
        write_spec(rng, f"{text}+o{slots}", SPECS[text], slots)
    for text, slots in [(text, 0) for text in TWO_LEVEL] + [("k3", 2)]:
        spec = TWO_LEVEL[text]
        n, k = 18, 288 if spec[3] else 96
        name = f"{text}+o{slots}" if slots else text
        write({"spec": name, "decode": two_level_random(rng, spec, n, k, slots), "rtn": two_level_rtn(rng, spec, n, k, slots)})


def write_spec(rng, text, spec, slots):
    n, k = 18, 160 if spec[0] == "fp8" else max(64, spec[2])
    write({"spec": text, "decode": random_case(rng, spec, n, k, slots), "rtn": rtn_case(rng, spec, n, k, slots)})


def write(golden):
    name = golden["spec"].replace(":", "_").replace(",", "_")
    with open(f"{name}.json", "w") as f:
        json.dump(golden, f, indent=0)
        f.write("\n")


if __name__ == "__main__":
    main()
