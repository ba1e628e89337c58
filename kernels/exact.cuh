// Products with f32 inputs: for floats, e4m3, tables of floats, and for what must see inputs unrounded whatever its format
// (routers, blocks). Also what needs single rows: embeddings.
#pragma once
#include "args.cuh"

static const u32 EXACT_THREADS = 256;

// y[r * M + m] = Σ row first + r (r < 16) times row(m) of x, whose rows start at `x + row · stride`.
template <class F, bool ROW_MAJOR, int M, class Row>
DEVICE void exact_rows(const Weight& w, u32 first, u32 end, u64 x, u64 stride, Row row, float* y) {
    SHARED float sums[16][M][17];
    const u32 thread = thread_x();
    // Neighbouring threads read neighbouring bytes: rows of a panel, or columns of a row.
    const u32 r = ROW_MAJOR ? thread / 16 : thread % 16, part = ROW_MAJOR ? thread % 16 : thread / 16;
    float acc[M];
    for (u32 m = 0; m < M; m++) acc[m] = 0.0f;
    if (first + r < end) {
        for (u32 octet = part; octet * 8 < w.k; octet += 16) {
            float v[8];
            F::values(w, first + r, octet, v);
            const u32 columns = least(8, w.k - octet * 8);
            for (u32 m = 0; m < M; m++) {
                const float* at = f32_at(x) + (u64)row(m) * stride + octet * 8;
                for (u32 j = 0; j < 8; j++)
                    if (j < columns) acc[m] += v[j] * at[j];
            }
        }
    }
    for (u32 m = 0; m < M; m++) sums[r][m][part] = acc[m];
    sync_threads();
    if (thread < 16 * M) {
        float total = 0.0f;
        for (u32 i = 0; i < 16; i++) total += sums[thread / M][thread % M][i];
        y[thread] = total;
    }
    sync_threads();
}

// The same of a row block of a format that lies in panels, every stored byte read once, 16 at a time: a lane takes four rows × 8 columns
// (`F::quads`), a warp two panels, as in small.cuh.
template <class F, int M, class Row> DEVICE void exact_panels(const Weight& w, u32 block, u64 x, u64 stride, Row row, float* y) {
    const u32 WARPS = EXACT_THREADS / 32;
    SHARED float sums[EXACT_THREADS / 32][16][M];
    const u32 thread = thread_x(), lane = thread % 32, warp = thread / 32;
    const u32 part = lane % 16 / 4, quad = lane % 4, panels = w.k / 32;
    float acc[4][M];
    for (u32 i = 0; i < 4; i++)
        for (u32 m = 0; m < M; m++) acc[i][m] = 0.0f;
    for (u32 panel = warp * 2 + lane / 16; panel < panels; panel += WARPS * 2) {
        float v[4][8];
        F::quads(w, block, panel, part, quad, v);
        for (u32 m = 0; m < M; m++) {
            const u64 at = x + 4 * ((u64)row(m) * stride + panel * 32 + part * 8);
            const Words4 low = load16(at), high = load16(at + 16);
            for (u32 j = 0; j < 8; j++) {
                const float xs = of_bits(j < 4 ? low.v[j] : high.v[j - 4]);
                for (u32 i = 0; i < 4; i++) acc[i][m] += v[i][j] * xs;
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

// How a format's rows are walked: floats row by row, what lies in panels panel by panel where it can, else octet by octet.
template <class F, bool ROW_MAJOR> struct Walk {
    template <int M, class Row> DEVICE static void rows(const Weight& w, u32 first, u64 x, u64 stride, Row row, float* y) {
        exact_rows<F, ROW_MAJOR, M>(w, first, w.n, x, stride, row, y);
    }
};
template <class F> struct WalkPanels {
    template <int M, class Row> DEVICE static void rows(const Weight& w, u32 first, u64 x, u64 stride, Row row, float* y) {
        exact_panels<F, M>(w, first / 16, x, stride, row, y);
    }
};

// grid: (row blocks of the widest part, parts, rows of x / M)
template <class W, int M> DEVICE void exact_linear(const LinearArgs& a) {
    SHARED float y[16 * M];
    const Part part = a.part[block_y()];
    const Weight w = ((const Weight*)a.weights)[part.weight];
    const u32 thread = thread_x(), first = block_x() * 16, first_row = block_z() * M;
    if (first >= w.n) return;
    const u32 last = a.m - 1;
    W::template rows<M>(w, first, a.x, a.k, [=](u32 m) { return least(first_row + m, last); }, y);
    const u32 n = first + thread / M, m = first_row + thread % M;
    if (thread < 16 * M && n < w.n && m < a.m) {
        float* to = f32_at(part.out) + (u64)m * w.n + n;
        const float v = part.bias ? y[thread] + f32_at(part.bias)[n] : y[thread];
        *to = a.accumulate ? *to + v : v;
    }
}

// grid: (row blocks, pairs, outputs)
template <class W> DEVICE void exact_pairs(const PairArgs& a) {
    SHARED float y[16];
    const u32 pair = listed(a.which, block_y()), thread = thread_x(), which = block_z();
    if (pair == NONE) return;
    const u64 ids = which ? a.ids[1] : a.ids[0], out = which ? a.out[1] : a.out[0];
    const Weight w = ((const Weight*)a.weights)[((const u32*)ids)[((const i32*)a.chosen)[pair]]];
    if (w.kind != a.kind) return;
    const u64 row = pair / a.per_row;
    W::template rows<1>(w, block_x() * 16, a.x, a.k, [row](u32) { return row; }, y);
    const u32 n = block_x() * 16 + thread;
    if (thread < 16 && n < a.n) f32_at(out)[(u64)pair * a.n + n] = y[thread];
}

// The values of an octet with the outliers of its row.
template <class F> DEVICE void whole_values(const Weight& w, u32 row, u32 octet, float v[8]) {
    F::values(w, row, octet, v);
    for (u32 s = 0; s < w.slots; s++) {
        const u32 slot = load4(w.outliers + 4 * ((u64)row * w.slots + s)), column = slot & 0xffff;
        if (column / 8 == octet)
            for (u32 j = 0; j < 8; j++)
                if (column % 8 == j) v[j] += f16_to_f32((u16)(slot >> 16));
    }
}

// out_b = x_b · W_bᵀ. grid: (blocks of 16 rows of a block, blocks, rows of x)
template <class F, bool ROW_MAJOR> DEVICE void exact_blocks(const BlockArgs& a) {
    struct Whole {
        DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) { whole_values<F>(w, row, octet, v); }
    };
    SHARED float y[16];
    const Weight w = ((const Weight*)a.weights)[a.weight];
    const u32 begin = block_y() * a.stride + a.first, first = begin + block_x() * 16, thread = thread_x();
    const u64 row = (u64)block_z() * a.count + block_y();
    exact_rows<Whole, ROW_MAJOR, 1>(w, first, begin + a.rows, a.x, a.k, [row](u32) { return row; }, y);
    const u32 r = block_x() * 16 + thread;
    if (thread < 16 && r < a.rows) f32_at(a.out)[row * a.rows + r] = y[thread];
}

// out_b = [x_b[..rows] · W_b, x_b[rows..]]. grid: (32 octets of columns, blocks, rows of x)
template <class F, bool ROW_MAJOR> DEVICE void exact_transposed(const BlockArgs& a) {
    SHARED float sums[8][32][9];
    const Weight w = ((const Weight*)a.weights)[a.weight];
    const u32 thread = thread_x(), part = thread / 32, lane = thread % 32, octet = block_x() * 32 + lane;
    const u32 begin = block_y() * a.stride + a.first, behind = a.width - a.rows;
    const u64 row = (u64)block_z() * a.count + block_y();
    const float* x = f32_at(a.x) + row * a.width;
    float* out = f32_at(a.out) + row * (a.k + behind);
    float acc[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (octet * 8 < a.k) {
        for (u32 r = part; r < a.rows; r += 8) {
            float v[8];
            whole_values<F>(w, begin + r, octet, v);
            for (u32 j = 0; j < 8; j++) acc[j] += x[r] * v[j];
        }
    }
    for (u32 j = 0; j < 8; j++) sums[part][lane][j] = acc[j];
    sync_threads();
    const u32 column = block_x() * 256 + thread;
    if (column < a.k) {
        float total = 0.0f;
        for (u32 i = 0; i < 8; i++) total += sums[i][thread / 8][thread % 8];
        out[column] = total;
    }
    if (block_x() == 0)
        for (u32 i = thread; i < behind; i += EXACT_THREADS) out[a.k + i] = x[a.rows + i];
}

// out[i] = row tokens[i]. grid: (256 octets, tokens)
template <class F> DEVICE void embed_rows(const EmbedArgs& a) {
    const Weight w = ((const Weight*)a.weights)[a.weight];
    const u32 octet = block_x() * EXACT_THREADS + thread_x();
    if (octet * 8 >= w.k) return;
    float v[8];
    whole_values<F>(w, ((const u32*)a.tokens)[block_y()], octet, v);
    float* out = f32_at(a.out) + (u64)block_y() * w.k + octet * 8;
    for (u32 j = 0; j < 8; j++)
        if (octet * 8 + j < w.k) out[j] = v[j];
}
