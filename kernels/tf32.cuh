// Products with f32 inputs for many rows, on the tensor cores. Weights and inputs are split into two numbers of 11
// significant bits each; three of the four products are added, which leaves an error of about 2^-22 per term.
//
// A block of 8 warps computes 64 outputs × 64 rows, 16 columns at a time.
#pragma once
#include "args.cuh"

static const u32 TF32_THREADS = 256;
static const u32 TF32_TILE = 64;

struct Split { u32 high, low; };
DEVICE Split split(float v) {
    Split s;
    s.high = to_tf32(v);
    s.low = to_tf32(v - of_bits(s.high));
    return s;
}

template <class F, class Row, class Store>
DEVICE void tf32_block(const Weight& w, u32 first, u64 x, u64 stride, u32 rows, Row row, Store store) {
    // 20 floats to a row: neither stores nor the fragments' loads meet in a bank.
    SHARED float a[TF32_TILE][20], b[TF32_TILE][20];
    const u32 thread = thread_x(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const u32 warp_output = warp / 2 * 16, warp_row = warp % 2 * 32;
    float acc[4][4];
    for (u32 j = 0; j < 4; j++)
        for (u32 c = 0; c < 4; c++) acc[j][c] = 0.0f;
    for (u32 start = 0; start < w.k; start += 16) {
        // The first 128 threads fetch weights, the others inputs: a row and an octet of columns each.
        const u32 r = thread % 64, half = thread / 64 % 2, octet = start / 8 + half;
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (thread < 128) {
            if (first + r < w.n && octet * 8 < w.k) F::values(w, first + r, octet, v);
        } else if (r < rows) {
            const float* at = f32_at(x) + (u64)row(r) * stride + octet * 8;
            for (u32 j = 0; j < 8; j++) v[j] = octet * 8 + j < w.k ? at[j] : 0.0f;
        }
        for (u32 j = 0; j < 8; j++) (thread < 128 ? a : b)[r][half * 8 + j] = v[j];
        sync_threads();
        for (u32 k = 0; k < 16; k += 8) {
            u32 high[4], low[4];
            for (u32 c = 0; c < 4; c++) {
                const Split s = split(a[warp_output + g + 8 * (c % 2)][k + t + 4 * (c / 2)]);
                high[c] = s.high, low[c] = s.low;
            }
            for (u32 j = 0; j < 4; j++) {
                const float* at = b[warp_row + j * 8 + g] + k + t;
                const Split b0 = split(at[0]), b1 = split(at[4]);
                const u32 b_high[2] = {b0.high, b1.high}, b_low[2] = {b0.low, b1.low};
                mma_tf32_k8(acc[j], low, b_high);
                mma_tf32_k8(acc[j], high, b_low);
                mma_tf32_k8(acc[j], high, b_high);
            }
        }
        sync_threads();
    }
    for (u32 j = 0; j < 4; j++)
        for (u32 c = 0; c < 4; c++) {
            const u32 output = first + warp_output + g + 8 * (c / 2), r = warp_row + j * 8 + 2 * t + c % 2;
            if (output < w.n && r < rows) store(output, r, acc[j][c]);
        }
}

// grid: (tiles of outputs, tiles of rows, parts)
template <class F> DEVICE void tf32_linear(const LinearArgs& a) {
    const Part part = a.part[block_z()];
    const Weight w = ((const Weight*)a.weights)[part.weight];
    const u32 first = block_x() * TF32_TILE, first_row = block_y() * TF32_TILE;
    const u64 out = part.out, bias = part.bias;
    const u32 n = w.n, accumulate = a.accumulate;
    if (first >= w.n) return;
    tf32_block<F>(w, first, a.x, a.k, a.m - first_row, [=](u32 i) { return first_row + i; },
        [=](u32 output, u32 i, float v) {
            float* to = f32_at(out) + (u64)(first_row + i) * n + output;
            if (bias) v += f32_at(bias)[output];
            *to = accumulate ? *to + v : v;
        });
}

// grid: (tiles of outputs, tiles of pairs at most, outputs)
template <class F> DEVICE void tf32_groups(const GroupArgs& a) {
    GroupTile tile;
    Weight w;
    if (!group_tile(a, tile, w)) return;
    tf32_block<F>(w, block_x() * TF32_TILE, a.x, a.k, tile.rows, [&](u32 i) { return tile.order[i] / a.per_row; },
        [&](u32 output, u32 i, float v) { store_of_group(a, tile, output, i, v); });
}
