// What matrix kernels are told. Each struct has a twin in crates/cuda/src/args.rs; a test compares their sizes.
#pragma once
#include "weight.cuh"

// One output of a product: m × n, row-major.
struct Part {
    u64 out, bias;
    u32 weight, reserved;
};

// out = x · Wᵀ + bias for several weights of one kind, or out += ….
struct LinearArgs {
    u64 weights;
    // Rounded inputs: signed bytes m × k, and scales m × k/32. Or the inputs themselves, m × k.
    u64 codes, scales, x;
    u32 m, k, accumulate, parts;
    Part part[6];
};

// A product per (token, slot) of a mixture: a pair. `ids` name the weight of every expert, those of another kind are left out.
struct PairArgs {
    u64 weights;
    u64 ids[2], out[2];
    // Of every pair, its expert.
    u64 chosen;
    u64 codes, scales, x;
    // The pairs to compute, 0xffffffff for none; 0 for all.
    u64 which;
    // Row of the inputs: pair / per_row.
    u32 pairs, per_row, k, n, kind, reserved;
};
static const u32 NONE = 0xffffffff;
// Number i of a list of rows or pairs; 0 lists all.
DEVICE u32 listed(u64 which, u32 i) { return which ? ((const u32*)which)[i] : i; }

// The same grouped by expert. `order`: pairs, expert by expert; `tiles`: (expert, first place, pairs) of every tile of rows.
struct GroupArgs {
    u64 weights;
    u64 ids[2], out[2];
    u64 order, tiles, count;
    u64 codes, scales, x;
    u32 per_row, k, n, kind;
};

// A tile of pairs of one expert, as a product of many rows takes it.
struct GroupTile {
    const u32* order;
    u32 rows;
};
// The tile of this block; false if there are fewer. `w`: the expert's weight, which may be of another kind.
DEVICE bool group_tile(const GroupArgs& a, GroupTile& tile, Weight& w) {
    if (block_y() >= *(const u32*)a.count) return false;
    const u32* t = (const u32*)a.tiles + 3 * block_y();
    tile.order = (const u32*)a.order + t[1], tile.rows = t[2];
    w = ((const Weight*)a.weights)[((const u32*)(block_z() ? a.ids[1] : a.ids[0]))[t[0]]];
    return w.kind == a.kind;
}
DEVICE void store_of_group(const GroupArgs& a, const GroupTile& tile, u32 output, u32 i, float v) {
    f32_at(block_z() ? a.out[1] : a.out[0])[(u64)tile.order[i] * a.n + output] = v;
}

// Blocks of a weight, each times its own part of x.
struct BlockArgs {
    u64 weights, x, out;
    u32 weight, m, count, stride, first, rows, k, width;
};

struct EmbedArgs {
    u64 weights, tokens, out;
    u32 weight, m;
};

// What outliers add to products that are there already.
struct OutlierArgs {
    u64 weights, codes, scales, x, out;
    // Of pairs: chosen expert, weight of every expert. 0 for rows in order.
    u64 chosen, ids;
    // The pairs, as in `PairArgs`.
    u64 which;
    u32 weight, m, k, n, per_row, reserved;
};
