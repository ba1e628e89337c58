// Products for many rows of inputs on the integer tensor cores.
//
// A panel of 16 × 32 codes is what one m16n8k32 instruction takes, and 32 columns are what a scale of rounded inputs spans:
// the instruction's integer sum is exact, and one multiply-add per output scales it. Nothing is rounded that the
// small product does not round.
//
// A block of 8 warps computes 128 outputs × TOKENS rows. Levels are unpacked once into shared memory; the next panels are
// fetched while the present ones are multiplied.
#pragma once
#include "args.cuh"
#include "levels.cuh"

static const u32 LARGE_THREADS = 256;
static const u32 LARGE_OUTPUTS = 128;

// Codes and scales of one panel column: 8 × 16 outputs and TOKENS rows.
template <u32 TOKENS, u32 GROUPS> struct LargeStage {
    // [16 outputs][octet of columns][row of 16], 8 bytes each; 4 more for the banks.
    u32 a[8][4][40];
    u32 b[TOKENS][8];
    float a_scale[GROUPS][LARGE_OUTPUTS];
    float b_scale[TOKENS];
};

template <class F, u32 TOKENS> struct LargeFetch {
    static const u32 A = LARGE_OUTPUTS * 4 / LARGE_THREADS, B = (TOKENS * 4 + LARGE_THREADS - 1) / LARGE_THREADS;
    u32 a[A][2];
    Words2 b[B];
    float a_scale[A], b_scale;
};

// `row(i)`: the row of inputs of the tile's row i, for i < rows; `store(output, i, value)` takes the results.
template <class F, u32 TOKENS, class Row, class Store>
DEVICE void large_block(const Weight& w, u32 first_output, u64 codes, u64 scales, u32 rows, Row row, Store store) {
    typedef LargeStage<TOKENS, F::GROUPS> Stage;
    typedef LargeFetch<F, TOKENS> Fetch;
    // Warps lie 8 × 1 or 4 × 2 over outputs × rows.
    const u32 ACROSS = TOKENS >= 64 ? 2 : 1, OUTPUTS = ACROSS, COLUMNS = TOKENS / ACROSS / 8;
    SHARED Stage stages[2];
    const u32 thread = thread_x(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const u32 panels = w.k / 32, padded = (w.n + 15) / 16 * 16;
    const u32 warp_output = warp / ACROSS * OUTPUTS, warp_row = warp % ACROSS * (TOKENS / ACROSS);

    auto fetch = [&](u32 panel, Fetch& f) {
        for (u32 i = 0; i < Fetch::A; i++) {
            const u32 at = thread + i * LARGE_THREADS, output = first_output + at % LARGE_OUTPUTS, octet = at / LARGE_OUTPUTS;
            float scale = 0.0f;
            f.a[i][0] = f.a[i][1] = 0;
            if (output < padded) F::level_octet(w, output, panel * 4 + octet, f.a[i], scale);
            f.a_scale[i] = scale;
        }
        for (u32 i = 0; i < Fetch::B; i++) {
            const u32 at = thread + i * LARGE_THREADS, r = at / 4;
            f.b[i].v[0] = f.b[i].v[1] = 0;
            if (r < rows && r < TOKENS) f.b[i] = load8(codes + (u64)row(r) * w.k + panel * 32 + at % 4 * 8);
        }
        if (thread < TOKENS) f.b_scale = thread < rows ? f32_at(scales)[(u64)row(thread) * panels + panel] : 0.0f;
    };
    auto put = [&](Stage& s, const Fetch& f) {
        for (u32 i = 0; i < Fetch::A; i++) {
            const u32 at = thread + i * LARGE_THREADS, output = at % LARGE_OUTPUTS, octet = at / LARGE_OUTPUTS;
            u32* to = &s.a[output / 16][octet][output % 16 * 2];
            to[0] = f.a[i][0], to[1] = f.a[i][1];
            // The scale of octet 0 (and of octet 2, where a panel has two) is the group's.
            if (octet % (4 / F::GROUPS) == 0) s.a_scale[octet * F::GROUPS / 4][output] = f.a_scale[i];
        }
        for (u32 i = 0; i < Fetch::B; i++) {
            const u32 at = thread + i * LARGE_THREADS;
            if (at >= TOKENS * 4) break;
            u32 first = f.b[i].v[0], second = f.b[i].v[1];
            if (F::INTERLEAVED) interleave(first, second);
            s.b[at / 4][at % 4 * 2] = first, s.b[at / 4][at % 4 * 2 + 1] = second;
        }
        if (thread < TOKENS) s.b_scale[thread] = f.b_scale;
    };

    float acc[OUTPUTS][COLUMNS][4];
    for (u32 i = 0; i < OUTPUTS; i++)
        for (u32 j = 0; j < COLUMNS; j++)
            for (u32 c = 0; c < 4; c++) acc[i][j][c] = 0.0f;

    Fetch f;
    fetch(0, f);
    put(stages[0], f);
    sync_threads();
    for (u32 panel = 0; panel < panels; panel++) {
        const Stage& s = stages[panel % 2];
        if (panel + 1 < panels) fetch(panel + 1, f);
        for (u32 half = 0; half < F::GROUPS; half++) {
            u32 a[OUTPUTS][4];
            float a_scale[OUTPUTS][2];
            for (u32 i = 0; i < OUTPUTS; i++) {
                const u32 tile = warp_output + i;
                if (F::GROUPS == 1) {
                    for (u32 c = 0; c < 4; c++) a[i][c] = s.a[tile][t][(g + 8 * (c % 2)) * 2 + c / 2];
                } else {
                    for (u32 c = 0; c < 2; c++) a[i][c] = s.a[tile][2 * half + t / 2][(g + 8 * c) * 2 + t % 2];
                }
                for (u32 c = 0; c < 2; c++) a_scale[i][c] = s.a_scale[half][tile * 16 + g + 8 * c];
            }
            for (u32 j = 0; j < COLUMNS; j++) {
                const u32 column = warp_row + j * 8;
                const float b_scale[2] = {s.b_scale[column + 2 * t], s.b_scale[column + 2 * t + 1]};
                for (u32 i = 0; i < OUTPUTS; i++) {
                    i32 c[4] = {0, 0, 0, 0};
                    if (F::GROUPS == 1) {
                        const u32 b[2] = {s.b[column + g][2 * t], s.b[column + g][2 * t + 1]};
                        mma_s8_k32(c, a[i], b);
                    } else {
                        mma_s8_k16(c, a[i], s.b[column + g][2 * (2 * half + t / 2) + t % 2]);
                    }
                    for (u32 q = 0; q < 4; q++) acc[i][j][q] += (float)c[q] * (a_scale[i][q / 2] * b_scale[q % 2]);
                }
            }
        }
        if (panel + 1 < panels) put(stages[(panel + 1) % 2], f);
        sync_threads();
    }
    for (u32 i = 0; i < OUTPUTS; i++)
        for (u32 j = 0; j < COLUMNS; j++)
            for (u32 c = 0; c < 4; c++) {
                const u32 output = first_output + (warp_output + i) * 16 + g + 8 * (c / 2);
                const u32 r = warp_row + j * 8 + 2 * t + c % 2;
                if (output < w.n && r < rows) store(output, r, acc[i][j][c]);
            }
}

// grid: (tiles of outputs, tiles of rows, parts)
template <class F, u32 TOKENS> DEVICE void large_linear(const LinearArgs& a) {
    const Part part = a.part[block_z()];
    const Weight w = ((const Weight*)a.weights)[part.weight];
    const u32 first = block_x() * LARGE_OUTPUTS, first_row = block_y() * TOKENS;
    const u64 out = part.out, bias = part.bias;
    const u32 n = w.n, accumulate = a.accumulate;
    if (first >= w.n) return;
    large_block<F, TOKENS>(w, first, a.codes, a.scales, a.m - first_row, [=](u32 i) { return first_row + i; },
        [=](u32 output, u32 i, float v) {
            float* to = f32_at(out) + (u64)(first_row + i) * n + output;
            if (bias) v += f32_at(bias)[output];
            *to = accumulate ? *to + v : v;
        });
}

// grid: (tiles of outputs, tiles of pairs at most, outputs)
template <class F, u32 TOKENS> DEVICE void large_groups(const GroupArgs& a) {
    GroupTile tile;
    Weight w;
    if (!group_tile(a, tile, w)) return;
    large_block<F, TOKENS>(w, block_x() * LARGE_OUTPUTS, a.codes, a.scales, tile.rows, [&](u32 i) { return tile.order[i] / a.per_row; },
        [&](u32 output, u32 i, float v) { store_of_group(a, tile, output, i, v); });
}
