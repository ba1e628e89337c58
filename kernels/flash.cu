// Attention of many rows on the tensor cores, over keys and values in halves or in 8 bits, heads of up to 128.
//
// Codes of 8 bits are exact in halves, so what is multiplied is what is stored; scales follow in f32. Queries and weights
// are split into two halves each, 22 bits, so the products err by what f32 sums do. Online softmax over pages of 64
// positions (Dao 2023): a block of 4 warps serves 64 rows, 16 to a warp, which hold queries, scores and sums in registers. Keys of
// the next page come while weights meet values, values of this one while scores are computed.
#include "attention.cuh"

static const u32 THREADS = 128;
// Queries are scaled to below this, and weights by this: the lower half of what is split then keeps all its bits.
static const float QUERY = 256.0f, WEIGHT = 16384.0f;

// Scales of a page's keys, and of its values by 32 columns, as parts of `unit`.
template <u32 DIM> struct FlashScales {
    float keys[PAGE], values[DIM / 32][PAGE], unit[DIM / 32];
};

template <u32 DIM> DEVICE u32 flash_stride() { return DIM + 8; }

// A page of keys or values, 64 × DIM halves; what lies behind `end` or the head's width is 0.
template <u32 DIM, bool SCALED>
DEVICE void load_page(const Cache& c, u32 slot, u32 head, bool value, u32 start, u32 end, u16* to) {
    const u64 codes = codes_of(c, slot, start, head, value);
    const u32 width = value ? c.value_width : c.key_width;
    // What is converted passes through registers.
#pragma unroll(SCALED ? 2 : 4)
    for (u32 i = thread_x(); i < PAGE * DIM / 8; i += THREADS) {
        const u32 p = i / (DIM / 8), column = i % (DIM / 8) * 8;
        const bool here = start + p < end && column < c.dim;
        u16* at = to + p * flash_stride<DIM>() + column;
        if (!SCALED) {
            copy16(at, codes + 2 * (here ? p * width + column : 0), here);
        } else {
            u32 out[4] = {0, 0, 0, 0};
            if (here) {
                const Words2 w = load8(codes + p * width + column);
                for (u32 j = 0; j < 4; j++) {
                    const u32 pair = w.v[j / 2] >> (16 * (j % 2));
                    out[j] = pack_f16((float)(i8)pair, (float)(i8)(pair >> 8));
                }
            }
            for (u32 j = 0; j < 4; j++) ((u32*)at)[j] = out[j];
        }
    }
    commit_copies();
}

template <u32 DIM> DEVICE void load_key_scales(const Cache& c, u32 slot, u32 head, u32 start, u32 end, FlashScales<DIM>& s) {
    const u32 p = thread_x();
    if (p < PAGE) s.keys[p] = start + p < end ? f16_to_f32(load2(scales_of(c, slot, start, head, false) + 2 * p)) : 0.0f;
}

// A warp takes a group of columns.
template <u32 DIM> DEVICE void load_value_scales(const Cache& c, u32 slot, u32 head, u32 start, u32 end, FlashScales<DIM>& s) {
    const u32 lane = thread_x() % 32, group = thread_x() / 32, groups = (c.dim + 31) / 32;
    if (group >= DIM / 32) return;
    const u64 from = scales_of(c, slot, start, head, true);
    float own[2];
    for (u32 i = 0; i < 2; i++) {
        const u32 p = lane + 32 * i;
        own[i] = start + p < end && group < groups ? f16_to_f32(load2(from + 2 * (p * groups + group))) : 0.0f;
    }
    // A power of two, so that nothing is rounded.
    const u32 exponent = bits_of(warp_max(fmaxf(own[0], own[1]))) & 0x7f800000;
    const float unit = exponent ? of_bits(exponent) : 1.0f;
    for (u32 i = 0; i < 2; i++) s.values[group][lane + 32 * i] = own[i] * (1.0f / unit);
    if (lane == 0) s.unit[group] = unit;
}

// Two halves whose sum is v, of two neighbours each.
DEVICE void split_halves(float first, float second, u32& high, u32& low) {
    high = pack_f16(first, second);
    low = pack_f16(first - f16_to_f32((u16)high), second - f16_to_f32((u16)(high >> 16)));
}

// What a lane holds: rows g and g + 8 of its warp's 16.
template <u32 DIM> struct Flash {
    u32 high[DIM / 16][4], low[DIM / 16][4];
    // What scores are multiplied with; the position of each row.
    float unit[2];
    u32 seen[2];
    float most[2], sum[2];
    float acc[DIM / 8][4];
};

// Of a tile: its first row and how many. A row that is none is the last one again.
DEVICE const u32* tile_of(const AttentionArgs& a) {
    // The last rows see most: they begin first.
    return (const u32*)a.tiles + 2 * (grid_x() - 1 - block_x());
}
DEVICE u32 own_row(u32 i) { return thread_x() / 32 * 16 + thread_x() % 32 / 4 + 8 * i; }
DEVICE u32 row_of(const u32* tile, u32 i) { return tile[0] + least(own_row(i), tile[1] - 1); }

template <u32 DIM> DEVICE void load_queries(const AttentionArgs& a, u32 head, const u32* tile, Flash<DIM>& f) {
    const u32 t = thread_x() % 4, dim = a.cache.dim;
    const float* q[2];
    float inverse[2];
    for (u32 i = 0; i < 2; i++) {
        const u32 row = row_of(tile, i);
        q[i] = f32_at(a.q) + ((u64)(row / a.group) * a.cache.heads * a.group + head * a.group + row % a.group) * dim;
        float most = 0.0f;
        for (u32 column = 2 * t; column < dim; column += 8) most = fmaxf(most, fmaxf(fabsf(q[i][column]), fabsf(q[i][column + 1])));
        for (u32 mask = 1; mask <= 2; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
        const float power = fmaxf(of_bits(bits_of(most * fabsf(a.scale)) & 0x7f800000), of_bits((127u - 100) << 23));
        f.unit[i] = power / QUERY;
        inverse[i] = QUERY / power;
    }
    for (u32 k = 0; k < DIM / 16; k++)
        for (u32 i = 0; i < 4; i++) {
            const u32 column = 16 * k + 8 * (i / 2) + 2 * t, r = i % 2;
            const bool here = column < dim;
            const float first = here ? q[r][column] * a.scale * inverse[r] : 0.0f;
            const float second = here ? q[r][column + 1] * a.scale * inverse[r] : 0.0f;
            split_halves(first, second, f.high[k][i], f.low[k][i]);
        }
}

// Scores of 64 positions: element c of tile j is of row g + 8 (c / 2), position 8 j + 2 t + c % 2.
template <u32 DIM> DEVICE void score_page(const Flash<DIM>& f, const u16* keys, float s[8][4]) {
    const u32 lane = thread_x() % 32, r = lane % 8, m = lane / 8;
    for (u32 j = 0; j < 8; j++)
        for (u32 c = 0; c < 4; c++) s[j][c] = 0.0f;
#pragma unroll
    for (u32 k = 0; k < DIM / 16; k++)
#pragma unroll
        for (u32 j = 0; j < 8; j += 2) {
            u32 b[4];
            load_matrices(b, keys + ((j + m / 2) * 8 + r) * flash_stride<DIM>() + 16 * k + m % 2 * 8);
            for (u32 i = 0; i < 2; i++) {
                mma_f16_k16(s[j + i], f.low[k], b + 2 * i);
                mma_f16_k16(s[j + i], f.high[k], b + 2 * i);
            }
        }
}

// Scores become weights, times WEIGHT; what was summed so far is brought to the new maximum.
template <u32 DIM, bool SCALED>
DEVICE void weigh_page(const AttentionArgs& a, Flash<DIM>& f, u32 start, const FlashScales<DIM>& scales, float s[8][4]) {
    const u32 t = thread_x() % 4;
    float most[2] = {f.most[0], f.most[1]};
    for (u32 j = 0; j < 8; j++)
        for (u32 c = 0; c < 4; c++) {
            const u32 i = c / 2, at = 8 * j + 2 * t + c % 2, p = start + at;
            const bool visible = p <= f.seen[i] && (!a.window || p + a.window > f.seen[i]);
            const float score = SCALED ? s[j][c] * (f.unit[i] * scales.keys[at]) : s[j][c] * f.unit[i];
            s[j][c] = visible ? score : NEVER;
            most[i] = fmaxf(most[i], s[j][c]);
        }
    float kept[2];
    for (u32 i = 0; i < 2; i++) {
        for (u32 mask = 1; mask <= 2; mask *= 2) most[i] = fmaxf(most[i], shuffle_xor(most[i], mask));
        kept[i] = expf(f.most[i] - most[i]);
        f.most[i] = most[i];
        f.sum[i] *= kept[i];
    }
    for (u32 j = 0; j < 8; j++)
        for (u32 c = 0; c < 4; c++) {
            // A row that has seen nothing yet has no maximum to compare with.
            const float weight = s[j][c] == NEVER ? 0.0f : expf(s[j][c] - most[c / 2]);
            f.sum[c / 2] += weight;
            s[j][c] = weight * WEIGHT;
        }
    for (u32 n = 0; n < DIM / 8; n++)
        for (u32 c = 0; c < 4; c++) f.acc[n][c] *= kept[c / 2];
}

// The weights of 16 positions as the first operand, times `w`: factors of positions 2t, 2t + 1, 8 + 2t, 9 + 2t.
DEVICE void weights_of(const float s[8][4], u32 k, const float w[4], u32 high[4], u32 low[4]) {
    for (u32 i = 0; i < 4; i++) {
        const float* of = s[2 * k + i / 2];
        split_halves(of[2 * (i % 2)] * w[i / 2 * 2], of[2 * (i % 2) + 1] * w[i / 2 * 2 + 1], high[i], low[i]);
    }
}

// Weighted values of 16 positions, columns 8 n.. of 16.
template <u32 DIM>
DEVICE void add_columns(const u16* values, u32 k, u32 n, const u32 high[4], const u32 low[4], float first[4], float second[4]) {
    const u32 lane = thread_x() % 32, r = lane % 8, m = lane / 8;
    u32 b[4];
    load_transposed(b, values + (16 * k + m % 2 * 8 + r) * flash_stride<DIM>() + 8 * n + m / 2 * 8);
    mma_f16_k16(first, low, b);
    mma_f16_k16(first, high, b);
    mma_f16_k16(second, low, b + 2);
    mma_f16_k16(second, high, b + 2);
}

template <u32 DIM, bool SCALED>
DEVICE void add_page(Flash<DIM>& f, const u16* values, const FlashScales<DIM>& scales, const float s[8][4]) {
    const u32 t = thread_x() % 4;
    u32 high[4], low[4];
    if (!SCALED) {
        const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            weights_of(s, k, ones, high, low);
#pragma unroll
            for (u32 n = 0; n < DIM / 8; n += 2) add_columns<DIM>(values, k, n, high, low, f.acc[n], f.acc[n + 1]);
        }
        return;
    }
#pragma unroll
    for (u32 group = 0; group < DIM / 32; group++) {
        float part[4][4];
        for (u32 n = 0; n < 4; n++)
            for (u32 c = 0; c < 4; c++) part[n][c] = 0.0f;
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const float* of = scales.values[group] + 16 * k + 2 * t;
            const float w[4] = {of[0], of[1], of[8], of[9]};
            weights_of(s, k, w, high, low);
            for (u32 n = 0; n < 4; n += 2) add_columns<DIM>(values, k, 4 * group + n, high, low, part[n], part[n + 1]);
        }
        for (u32 n = 0; n < 4; n++)
            for (u32 c = 0; c < 4; c++) f.acc[4 * group + n][c] += part[n][c] * scales.unit[group];
    }
}

template <u32 DIM> DEVICE void store_rows(const AttentionArgs& a, u32 head, Flash<DIM>& f) {
    const u32 t = thread_x() % 4, heads = a.cache.heads * a.group;
    const u32* tile = tile_of(a);
    for (u32 i = 0; i < 2; i++) {
        const u32 row = row_of(tile, i);
        float sum = f.sum[i];
        for (u32 mask = 1; mask <= 2; mask *= 2) sum += shuffle_xor(sum, mask);
        const u32 of = head * a.group + row % a.group;
        float scale = 1.0f / sum;
        if (a.sinks) {
            const float sink = f32_at(a.sinks)[of], most = fmaxf(f.most[i], sink), kept = expf(f.most[i] - most);
            scale = kept / (sum * kept + expf(sink - most));
        }
        if (own_row(i) >= tile[1]) continue;
        float* out = f32_at(a.out) + ((u64)(row / a.group) * heads + of) * a.value_dim;
        for (u32 n = 0; n < DIM / 8; n++)
            for (u32 c = 0; c < 2; c++)
                if (8 * n + 2 * t + c < a.value_dim) out[8 * n + 2 * t + c] = f.acc[n][2 * i + c] * (scale / WEIGHT);
    }
}

// grid: (tiles of 64 rows, key heads)
template <u32 DIM, bool SCALED> DEVICE void flash(const AttentionArgs& a) {
    DYNAMIC_SHARED(memory);
    u16 *keys = (u16*)memory, *values = keys + PAGE * flash_stride<DIM>();
    FlashScales<DIM>& scales = *(FlashScales<DIM>*)(values + PAGE * flash_stride<DIM>());
    const Cache& c = a.cache;
    const u32 head = block_y(), *tile = tile_of(a), first = tile[0], count = tile[1];
    const u32* positions = (const u32*)a.positions;
    const u32 slot = ((const u32*)a.slots)[first / a.group];
    const u32 begins = positions[first / a.group] + 1, end = positions[(first + count - 1) / a.group] + 1;
    const u32 from = a.window && begins > a.window ? begins - a.window : 0;

    Flash<DIM> f;
    for (u32 i = 0; i < 2; i++) {
        f.seen[i] = positions[row_of(tile, i) / a.group];
        f.most[i] = NEVER;
        f.sum[i] = 0.0f;
    }
    for (u32 n = 0; n < DIM / 8; n++)
        for (u32 i = 0; i < 4; i++) f.acc[n][i] = 0.0f;
    load_queries<DIM>(a, head, tile, f);

    u32 start = from / PAGE * PAGE;
    load_page<DIM, SCALED>(c, slot, head, false, start, end, keys);
    if (SCALED) load_key_scales<DIM>(c, slot, head, start, end, scales);
    for (; start < end; start += PAGE) {
        load_page<DIM, SCALED>(c, slot, head, true, start, end, values);
        if (SCALED) load_value_scales<DIM>(c, slot, head, start, end, scales);
        await_copies();
        sync_threads();
        float s[8][4];
        score_page<DIM>(f, keys, s);
        weigh_page<DIM, SCALED>(a, f, start, scales, s);
        sync_threads();
        if (start + PAGE < end) {
            load_page<DIM, SCALED>(c, slot, head, false, start + PAGE, end, keys);
            if (SCALED) load_key_scales<DIM>(c, slot, head, start + PAGE, end, scales);
        } else {
            commit_copies();
        }
        await_copies();
        sync_threads();
        add_page<DIM, SCALED>(f, values, scales, s);
        sync_threads();
    }
    store_rows<DIM>(a, head, f);
}

KERNEL_FEW(flash_64_f16, AttentionArgs, 128) { flash<64, false>(a); }
KERNEL_FEW(flash_64_q8, AttentionArgs, 128) { flash<64, true>(a); }
KERNEL_FEW(flash_128_f16, AttentionArgs, 128) { flash<128, false>(a); }
KERNEL_FEW(flash_128_q8, AttentionArgs, 128) { flash<128, true>(a); }
