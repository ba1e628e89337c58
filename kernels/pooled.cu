// Pooled entries: windows of tokens become one key each, and tokens choose among them.
#include "native.cuh"

static const u32 THREADS = 256;

DEVICE u64 row_of(const Cache& c, u32 slot, u32 position, bool second) {
    return page_of(c, slot, position) + 4ull * c.dim * (position % PAGE + (second ? PAGE : 0));
}

struct PoolArgs {
    // Pages of rows: kv and gate + place of all tokens; the entries.
    Cache tokens, entries;
    u64 kv, gate, place, norm, frequencies, positions, slots;
    // Of every entry to make: slot and number.
    u64 windows;
    u32 ratio, overlap, turned, inverse;
    double multiplier;
    float eps;
    // How entries are stored: `EntryFormat`, and its first values.
    u32 format, plain, reserved;
};

// grid: (256 columns, rows)
KERNEL(store_tokens, PoolArgs, 256) {
    const u32 column = block_x() * THREADS + thread_x(), row = block_y(), wide = a.tokens.dim;
    if (column >= wide) return;
    const u32 position = ((const u32*)a.positions)[row], slot = ((const u32*)a.slots)[row];
    const u64 from = (u64)row * wide + column;
    f32_at(row_of(a.tokens, slot, position, false))[column] = f32_at(a.kv)[from];
    f32_at(row_of(a.tokens, slot, position, true))[column] = f32_at(a.gate)[from] + f32_at(a.place)[position % a.ratio * wide + column];
}

// One entry. grid: entries
KERNEL(pool_windows, PoolArgs, 256) {
    SHARED float sums[THREADS / 32];
    SHARED Rounded entry;
    const u32 slot = ((const u32*)a.windows)[2 * block_x()], window = ((const u32*)a.windows)[2 * block_x() + 1];
    const u32 width = a.entries.dim, own = a.overlap ? width : 0;
    const u32 begin = a.overlap && window > 0 ? (window - 1) * a.ratio : window * a.ratio, end = (window + 1) * a.ratio;
    float* out = entry.v;
    float square = 0.0f;
    for (u32 c = thread_x(); c < width; c += THREADS) {
        float most = -3.0e38f;
        for (u32 t = begin; t < end; t++) {
            const u32 at = t < window * a.ratio ? c : own + c;
            most = fmaxf(most, f32_at(row_of(a.tokens, slot, t, true))[at]);
        }
        double total = 0.0, sum = 0.0;
        for (u32 t = begin; t < end; t++) {
            const u32 at = t < window * a.ratio ? c : own + c;
            const double w = exp((double)f32_at(row_of(a.tokens, slot, t, true))[at] - (double)most);
            total += w;
            sum += w * (double)f32_at(row_of(a.tokens, slot, t, false))[at];
        }
        const float v = (float)(sum / total);
        out[c] = v;
        square += v * v;
    }
    square = warp_sum(square);
    if (thread_x() % 32 == 0) sums[thread_x() / 32] = square;
    sync_threads();
    float total = 0.0f;
    for (u32 i = 0; i < THREADS / 32; i++) total += sums[i];
    const float inverse = 1.0f / sqrtf(total / (float)width + a.eps);
    for (u32 c = thread_x(); c < width; c += THREADS) out[c] *= inverse * f32_at(a.norm)[c];
    sync_threads();
    float* turned = out + width - a.turned;
    for (u32 i = thread_x(); i < a.turned / 2; i += THREADS) {
        const double angle = (double)(window * a.ratio) * ((const double*)a.frequencies)[i];
        const float c = (float)(cos(angle) * a.multiplier), s = (float)(sin(angle) * a.multiplier) * (a.inverse ? -1.0f : 1.0f);
        const float u = turned[2 * i], v = turned[2 * i + 1];
        turned[2 * i] = u * c - v * s;
        turned[2 * i + 1] = v * c + u * s;
    }
    scale_vector(entry, width, a.format, a.plain);
    store_vector(entry, entry_of(a.entries, slot, window), width, a.format, a.plain);
}

struct NativeArgs {
    u64 x, out;
    u32 width, format, plain, reserved;
};
// What storing would keep of keys, or of the queries that they meet. grid: vectors
KERNEL(round_native, NativeArgs, 256) {
    SHARED Rounded key;
    const u64 at = (u64)block_x() * a.width;
    for (u32 i = thread_x(); i < a.width; i += THREADS) key.v[i] = f32_at(a.x)[at + i];
    scale_vector(key, a.width, a.format, a.plain);
    keep_vector(key, f32_at(a.out) + at, a.width, a.format, a.plain);
}

struct SelectArgs {
    Cache entries;
    u64 q, weights, positions, slots, scores, out;
    u32 heads, ratio, listed, most;
};

// Scores of every visible entry: Σ over heads of weight · relu(q · entry). grid: (8 entries each, rows)
KERNEL(score_entries, SelectArgs, 256) {
    const u32 lane = thread_x() % 32, entry = block_x() * 8 + thread_x() / 32, row = block_y(), dim = a.entries.dim;
    const u32 complete = (((const u32*)a.positions)[row] + 1) / a.ratio;
    if (entry >= complete) return;
    const u64 key = entry_of(a.entries, ((const u32*)a.slots)[row], entry);
    // A lane's first octet is decoded once for all heads: indexers' entries have no second one.
    float own[8];
    load_entry(a.entries, key, 8 * lane, own);
    double score = 0.0;
    for (u32 h = 0; h < a.heads; h++) {
        const float* q = f32_at(a.q) + ((u64)row * a.heads + h) * dim;
        double dot = 0.0;
        for (u32 octet = lane; octet * 8 < dim; octet += 32) {
            float v[8];
            for (u32 j = 0; j < 8; j++) v[j] = own[j];
            if (octet > lane) load_entry(a.entries, key, 8 * octet, v);
            for (u32 j = 0; j < 8; j++)
                if (octet * 8 + j < dim) dot += (double)q[octet * 8 + j] * (double)v[j];
        }
        for (u32 mask = 16; mask > 0; mask >>= 1) dot += shuffle_xor(dot, mask);
        score += (double)f32_at(a.weights)[(u64)row * a.heads + h] * fmax(dot, 0.0);
    }
    if (lane == 0) ((double*)a.scores)[(u64)row * a.most + entry] = score;
}

// The best of them, ascending, −1 where there are fewer. An entry is in if fewer than `listed` are better. grid: rows
KERNEL(choose_entries, SelectArgs, 256) {
    SHARED u32 counts[THREADS];
    const u32 row = block_x(), thread = thread_x();
    const u32 complete = (((const u32*)a.positions)[row] + 1) / a.ratio;
    const double* scores = (const double*)a.scores + (u64)row * a.most;
    float* out = f32_at(a.out) + (u64)row * a.listed;
    // Threads own neighbouring entries, so that what they keep is in order.
    const u32 each = parts_of(complete, THREADS), from = least(thread * each, complete), to = least(from + each, complete);
    u32 count = 0;
    for (u32 pass = 0; pass < 2; pass++) {
        u32 at = 0;
        if (pass == 1)
            for (u32 i = 0; i < thread; i++) at += counts[i];
        for (u32 e = from; e < to; e++) {
            u32 better = 0;
            for (u32 o = 0; o < complete && better < a.listed; o++) better += scores[o] > scores[e] || (scores[o] == scores[e] && o < e);
            if (better >= a.listed) continue;
            if (pass == 0) count++;
            else out[at++] = (float)e;
        }
        counts[thread] = count;
        sync_threads();
    }
    for (u32 i = least(complete, a.listed) + thread; i < a.listed; i += THREADS) out[i] = -1.0f;
}
