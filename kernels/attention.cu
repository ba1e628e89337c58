// Keys and values into their pages, and attention over them.
//
// A block serves 8 or 32 rows, each a query head of a token, that share a key head: the heads of a group, and at prefill
// neighbouring tokens. Positions are walked in tiles of 32: a lane scores one position, a warp's softmax runs
// online, and lanes turn to columns of the values for the sum. At decode the positions are split over blocks, whose
// results a second kernel merges in order. What the tensor cores can do at prefill is in flash.cu.
#include "attention.cuh"

struct StoreArgs {
    Cache cache;
    u64 k, v, positions, slots;
    u32 rows, values_in_keys;
};

// One head's key or value, a warp.
DEVICE void store_head(const Cache& c, const float* x, u64 codes, u64 scales, bool value) {
    const u32 lane = thread_x() % 32, step = value ? 32 : c.dim;
    if (c.format == KV_F32) {
        for (u32 i = lane; i < c.dim; i += 32) f32_at(codes)[i] = x[i];
    } else if (c.format == KV_F16) {
        for (u32 i = lane; i < c.dim; i += 32) ((u16*)codes)[i] = f32_to_f16(fminf(fmaxf(x[i], -65504.0f), 65504.0f));
    } else {
        for (u32 start = 0; start < c.dim; start += step) {
            const u32 end = least(start + step, c.dim);
            float most = 0.0f;
            for (u32 i = start + lane; i < end; i += 32) most = fmaxf(most, fabsf(x[i]));
            most = warp_max(most);
            const float exact = most / 127.0f;
            u16 scale = f32_to_f16(fminf(exact, 65504.0f));
            if (f16_to_f32(scale) < exact && scale < 0x7bff) scale++;
            const float inverse = most == 0.0f ? 0.0f : 1.0f / f16_to_f32(scale);
            for (u32 i = start + lane; i < end; i += 32)
                ((i8*)codes)[i] = (i8)(i32)fminf(fmaxf(rintf(x[i] * inverse), -127.0f), 127.0f);
            if (lane == 0) ((u16*)scales)[start / step] = scale;
        }
    }
}

// grid: (8 heads of keys each, then of values; rows)
KERNEL(store_kv, StoreArgs, 256) {
    const Cache& c = a.cache;
    const u32 item = block_x() * 8 + thread_x() / 32, row = block_y();
    const bool value = item >= c.heads;
    if (item >= (a.values_in_keys ? c.heads : 2 * c.heads)) return;
    const u32 head = value ? item - c.heads : item;
    const u32 position = ((const u32*)a.positions)[row], slot = ((const u32*)a.slots)[row];
    const float* x = f32_at(value ? a.v : a.k) + ((u64)row * c.heads + head) * c.dim;
    store_head(c, x, codes_of(c, slot, position, head, value), scales_of(c, slot, position, head, value), value);
}

// A tile of 32 positions (or entries) of one head to shared memory, `stride` floats each.
template <class At> DEVICE void load_tile(const Cache& c, u32 head, bool value, u32 width, float* to, u32 stride, At at) {
    const u32 octets = parts_of(width, 8);
    for (u32 i = thread_x(); i < 32 * octets; i += 256) {
        const u32 p = i / octets, column = i % octets * 8;
        u32 slot, position;
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (!at(p, slot, position)) {
        } else if (c.entries) {
            load_entry(c, entry_of(c, slot, position), column, v);
        } else {
            load_entries(c, codes_of(c, slot, position, head, value), scales_of(c, slot, position, head, value), value, column, width, v);
        }
        for (u32 j = 0; j < 8; j++)
            if (column + j < width) to[p * stride + column + j] = v[j];
    }
}

// What a warp knows of its rows: greatest score, sum of weights, weighted values (column lane + 32 d).
template <u32 ROWS, u32 COLUMNS> struct Running {
    float most[ROWS], sum[ROWS], acc[ROWS][COLUMNS];
};

template <u32 ROWS, u32 COLUMNS>
DEVICE void score_tile(const float* q, const float* keys, u32 stride, u32 dim, const bool visible[ROWS], Running<ROWS, COLUMNS>& s,
                       float weight[ROWS]) {
    const u32 lane = thread_x() % 32;
    float dot[ROWS];
    for (u32 r = 0; r < ROWS; r++) dot[r] = 0.0f;
    for (u32 d = 0; d < dim; d++) {
        const float key = keys[lane * stride + d];
        for (u32 r = 0; r < ROWS; r++) dot[r] += q[r * dim + d] * key;
    }
    for (u32 r = 0; r < ROWS; r++) {
        const float most = fmaxf(s.most[r], warp_max(visible[r] ? dot[r] : NEVER));
        weight[r] = visible[r] ? expf(dot[r] - most) : 0.0f;
        const float kept = expf(s.most[r] - most);
        s.most[r] = most;
        s.sum[r] = s.sum[r] * kept + warp_sum(weight[r]);
        for (u32 d = 0; d < COLUMNS; d++) s.acc[r][d] *= kept;
    }
}

template <u32 ROWS, u32 COLUMNS>
DEVICE void add_values(const float* values, u32 stride, u32 value_dim, const float weight[ROWS], Running<ROWS, COLUMNS>& s) {
    const u32 lane = thread_x() % 32;
    for (u32 p = 0; p < 32; p++) {
        float w[ROWS];
        for (u32 r = 0; r < ROWS; r++) w[r] = shuffle(weight[r], p);
        for (u32 d = 0; d < COLUMNS; d++) {
            const float v = lane + 32 * d < value_dim ? values[p * stride + lane + 32 * d] : 0.0f;
            for (u32 r = 0; r < ROWS; r++) s.acc[r][d] += w[r] * v;
        }
    }
}

// ROWS rows per warp; COLUMNS · 32 ≥ value_dim. grid: (tiles, key heads, splits)
template <u32 ROWS, u32 COLUMNS> DEVICE void attend(const AttentionArgs& a) {
    DYNAMIC_SHARED(memory);
    const Cache& c = a.cache;
    const u32 thread = thread_x(), lane = thread % 32, warp = thread / 32, head = block_y(), dim = c.dim, stride = dim + 1;
    const u32 first = ((const u32*)a.tiles)[2 * block_x()], count = ((const u32*)a.tiles)[2 * block_x() + 1];
    const u32 heads = c.heads * a.group;
    float *queries = memory, *tile = memory + 8 * ROWS * dim;
    for (u32 i = thread; i < 8 * ROWS * dim; i += 256) {
        const u32 r = first + least(i / dim, count - 1), token = r / a.group;
        queries[i] = f32_at(a.q)[((u64)token * heads + head * a.group + r % a.group) * dim + i % dim] * a.scale;
    }
    const u32 first_token = first / a.group, last_token = (first + count - 1) / a.group;
    const u32 slot = ((const u32*)a.slots)[first_token];
    const u32 *positions = (const u32*)a.positions;
    // The tile's own positions: from the first that its first token sees to its last token's.
    const u32 begins = positions[first_token] + 1, ends = positions[last_token] + 1;
    const u32 low = a.window && begins > a.window ? begins - a.window : 0;
    const u32 from = low > block_z() * a.split ? low : block_z() * a.split, to = least(ends, (block_z() + 1) * a.split);

    Running<ROWS, COLUMNS> s;
    u32 token[ROWS], seen[ROWS];
    for (u32 r = 0; r < ROWS; r++) {
        s.most[r] = NEVER;
        s.sum[r] = 0.0f;
        for (u32 d = 0; d < COLUMNS; d++) s.acc[r][d] = 0.0f;
        token[r] = (first + least(warp * ROWS + r, count - 1)) / a.group;
        seen[r] = positions[token[r]];
    }
    const float* q = queries + warp * ROWS * dim;
    for (u32 start = from / 32 * 32; start < to; start += 32) {
        auto at = [=](u32 p, u32& of, u32& position) {
            of = slot;
            position = start + p;
            return position >= from && position < to;
        };
        sync_threads();
        load_tile(c, head, false, dim, tile, stride, at);
        sync_threads();
        const u32 p = start + lane;
        bool visible[ROWS];
        for (u32 r = 0; r < ROWS; r++) visible[r] = p >= from && p < to && p <= seen[r] && (!a.window || p + a.window > seen[r]);
        float weight[ROWS];
        score_tile<ROWS, COLUMNS>(q, tile, stride, dim, visible, s, weight);
        if (!a.values_in_keys) {
            sync_threads();
            load_tile(c, head, true, a.value_dim, tile, stride, at);
            sync_threads();
        }
        add_values<ROWS, COLUMNS>(tile, stride, a.value_dim, weight, s);
    }
    if (a.ratio) {
        // All rows are heads of one token.
        const float* list = a.selected ? f32_at(a.selected) + (u64)first_token * a.listed : 0;
        const u32 complete = begins / a.ratio, entries = list ? a.listed : complete;
        for (u32 start = 0; start < entries; start += 32) {
            auto at = [=](u32 p, u32& of, u32& number) {
                of = slot;
                if (start + p >= entries) return false;
                if (list && list[start + p] < 0.0f) return false;
                number = list ? (u32)list[start + p] : start + p;
                return number < complete;
            };
            sync_threads();
            load_tile(a.entries, 0, false, dim, tile, stride, at);
            sync_threads();
            u32 of, number;
            const bool here = at(lane, of, number);
            bool visible[ROWS];
            for (u32 r = 0; r < ROWS; r++) visible[r] = here;
            float weight[ROWS];
            score_tile<ROWS, COLUMNS>(q, tile, stride, dim, visible, s, weight);
            add_values<ROWS, COLUMNS>(tile, stride, a.value_dim, weight, s);
        }
    }
    for (u32 r = 0; r < ROWS; r++) {
        const u32 row = first + warp * ROWS + r;
        if (warp * ROWS + r >= count) continue;
        const u64 at = (u64)token[r] * heads + head * a.group + row % a.group;
        if (a.splits > 1) {
            const u64 part = at * a.splits + block_z();
            if (lane == 0) {
                f32_at(a.parts)[2 * part] = s.most[r];
                f32_at(a.parts)[2 * part + 1] = s.sum[r];
            }
            for (u32 d = 0; d < COLUMNS; d++)
                if (lane + 32 * d < a.value_dim) f32_at(a.sums)[part * a.value_dim + lane + 32 * d] = s.acc[r][d];
            continue;
        }
        float scale = 1.0f / s.sum[r];
        if (a.sinks) {
            const float sink = f32_at(a.sinks)[head * a.group + row % a.group], most = fmaxf(s.most[r], sink);
            const float kept = expf(s.most[r] - most);
            scale = kept / (s.sum[r] * kept + expf(sink - most));
        }
        for (u32 d = 0; d < COLUMNS; d++)
            if (lane + 32 * d < a.value_dim) f32_at(a.out)[at * a.value_dim + lane + 32 * d] = s.acc[r][d] * scale;
    }
}

KERNEL(attend_8_128, AttentionArgs, 256) { attend<1, 4>(a); }
KERNEL(attend_8_256, AttentionArgs, 256) { attend<1, 8>(a); }
KERNEL(attend_8_576, AttentionArgs, 256) { attend<1, 18>(a); }
KERNEL(attend_32_128, AttentionArgs, 256) { attend<4, 4>(a); }

// Merges the splits of every row, in order, a sink before the first. grid: rows (token, head); a block's warps share columns.
KERNEL(merge_splits, AttentionArgs, 128) {
    const u64 row = block_x(), first = row * a.splits;
    const u32 heads = a.cache.heads * a.group;
    const float* parts = f32_at(a.parts);
    float most = a.sinks ? f32_at(a.sinks)[row % heads] : NEVER;
    const float sink = most;
    for (u32 i = 0; i < a.splits; i++) most = fmaxf(most, parts[2 * (first + i)]);
    float sum = a.sinks ? expf(sink - most) : 0.0f;
    for (u32 i = 0; i < a.splits; i++) sum += expf(parts[2 * (first + i)] - most) * parts[2 * (first + i) + 1];
    for (u32 d = thread_x(); d < a.value_dim; d += 128) {
        float v = 0.0f;
        for (u32 i = 0; i < a.splits; i++) v += expf(parts[2 * (first + i)] - most) * f32_at(a.sums)[(first + i) * a.value_dim + d];
        f32_at(a.out)[row * a.value_dim + d] = v / sum;
    }
}
