// Products for up to eight rows of inputs: every stored byte is read once, 16 bytes at a time.
//
// A block of 8 warps computes 16 outputs (a row block) of all rows. A lane reads four rows × SPAN columns of a panel, so
// that a warp reads 512 contiguous bytes; warps take panels in turn. Integer sums are exact; each lane adds its own
// sums in f32, then lanes, then warps are added in a fixed order.
#pragma once
#include "args.cuh"
#include "levels.cuh"

static const u32 SMALL_THREADS = 256;

// y[16 × M] += the row block times rows `row(m)` of the inputs; the result lies in shared memory: y[r * M + m].
template <class F, int M, int UNDER_WAY, class Row>
DEVICE void small_block(const Weight& w, u32 block, u64 codes, u64 scales, Row row, float* y) {
    const u32 WARPS = SMALL_THREADS / 32, PARTS = 32 / F::SPAN, LANES = 4 * PARTS, PER_WARP = 32 / LANES, WORDS = F::SPAN / 4;
    SHARED float sums[SMALL_THREADS / 32][16][M];
    const u32 thread = thread_x(), lane = thread % 32, warp = thread / 32;
    const u32 part = lane % LANES / 4, quad = lane % 4, panels = w.k / 32;
    typename F::Rows rows;
    F::rows(w, block, quad, rows);
    float acc[4][M];
    for (u32 i = 0; i < 4; i++)
        for (u32 m = 0; m < M; m++) acc[i][m] = 0.0f;
    // So many loads under way per lane as registers allow.
#pragma unroll(UNDER_WAY)
    for (u32 panel = warp * PER_WARP + lane / LANES; panel < panels; panel += WARPS * PER_WARP) {
        typename F::Raw raw;
        F::load(w, (u64)block * panels + panel, part, quad, raw);
        float s[4];
        i32 shift[4];
        F::scales(w, rows, block, panel * 32 + part * F::SPAN, quad, s, shift);
        u32 levels[4][WORDS];
        for (u32 i = 0; i < 4; i++) F::words(w, raw, i, levels[i]);
        for (u32 m = 0; m < M; m++) {
            const u64 r = row(m);
            const u64 at = codes + r * w.k + panel * 32 + part * F::SPAN;
            u32 x[WORDS];
            if (WORDS == 2) {
                const Words2 v = load8(at);
                x[0] = v.v[0], x[1] = v.v[1];
                if (F::INTERLEAVED) interleave(x[0], x[1]);
            } else {
                const Words4 v = load16(at);
                // Columns c and c + 8 side by side.
                x[0] = v.v[0], x[1] = v.v[2], x[WORDS - 2] = v.v[1], x[WORDS - 1] = v.v[3];
                interleave(x[0], x[1]);
                interleave(x[WORDS - 2], x[WORDS - 1]);
            }
            const float xs = f32_at(scales)[r * panels + panel];
            i32 sum = 0;
            if (F::SHIFTED)
                for (u32 j = 0; j < WORDS; j++) sum = dp4a(x[j], ONES, sum);
            for (u32 i = 0; i < 4; i++) {
                i32 dot = F::SHIFTED ? shift[i] * sum : 0;
                for (u32 j = 0; j < WORDS; j++) dot = dp4a(levels[i][j], x[j], dot);
                acc[i][m] += (float)dot * (s[i] * xs);
            }
        }
    }
    for (u32 i = 0; i < 4; i++)
        for (u32 m = 0; m < M; m++) {
            for (u32 mask = 4; mask < 32; mask *= 2) acc[i][m] += shuffle_xor(acc[i][m], mask);
            if (lane < 4) sums[warp][4 * quad + i][m] = acc[i][m];
        }
    sync_threads();
    if (thread < 16 * M) {
        float total = 0.0f;
        for (u32 i = 0; i < WARPS; i++) total += sums[i][thread / M][thread % M];
        y[thread] = total;
    }
    sync_threads();
}

// grid: (row blocks of the widest part, parts)
template <class F, int M> DEVICE void small_linear(const LinearArgs& a) {
    SHARED float y[16 * M];
    const Part part = a.part[block_y()];
    const Weight w = ((const Weight*)a.weights)[part.weight];
    const u32 block = block_x(), thread = thread_x();
    if (block * 16 >= w.n) return;
    const u32 last = a.m - 1;
    small_block<F, M, M <= 2 ? 2 : 1>(w, block, a.codes, a.scales, [last](u32 m) { return (u64)least(m, last); }, y);
    const u32 row = block * 16 + thread / M, m = thread % M;
    if (thread < 16 * M && row < w.n && m < a.m) {
        float* to = f32_at(part.out) + (u64)m * w.n + row;
        const float v = part.bias ? y[thread] + f32_at(part.bias)[row] : y[thread];
        *to = a.accumulate ? *to + v : v;
    }
}

// grid: (row blocks, pairs, outputs)
template <class F> DEVICE void small_pairs(const PairArgs& a) {
    SHARED float y[16];
    const u32 pair = listed(a.which, block_y()), thread = thread_x(), which = block_z();
    if (pair == NONE) return;
    const u64 ids = which ? a.ids[1] : a.ids[0], out = which ? a.out[1] : a.out[0];
    const Weight w = ((const Weight*)a.weights)[((const u32*)ids)[((const i32*)a.chosen)[pair]]];
    if (w.kind != a.kind) return;
    const u64 row = pair / a.per_row;
    small_block<F, 1, F::PAIRS_UNDER_WAY>(w, block_x(), a.codes, a.scales, [row](u32) { return row; }, y);
    const u32 n = block_x() * 16 + thread;
    if (thread < 16 && n < a.n) f32_at(out)[(u64)pair * a.n + n] = y[thread];
}
