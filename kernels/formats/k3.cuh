// k3: indices of 2 + 1 bits into one of two grids; the high bits are masks of 64, one per 4 columns.
#pragma once
#include "formats/nested.cuh"

struct K3 : Nested<6>, IntegerFormat<K3> {
    static const u32 SPAN = 16, GROUPS = 1;
    static const bool INTERLEAVED = true, SHIFTED = true;
    static const int PAIRS_UNDER_WAY = 1;
    // `high[j]`: of columns 8j.. of the span a nibble for each of the four rows, and of 8j + 4.. the same above them.
    struct Raw {
        Words4 codes;
        u32 high[2];
    };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        r.codes = stream16(w.codes + panel * 128 + part * 64 + quad * 16);
        const u64 high = w.high + panel * 64 + part * 32 + 2 * quad;
        for (u32 j = 0; j < 2; j++) r.high[j] = load2(high + 16 * j) | (u32)load2(high + 16 * j + 8) << 16;
    }
    DEVICE static void words(const Weight& w, const Raw& r, u32 i, u32 out[4]) {
        u32 high[4];
        for (u32 j = 0; j < 4; j++) high[j] = (r.high[j / 2] >> (16 * (j % 2) + 4 * i)) & 15;
        const u32 even = (r.codes.v[i] & 0x33333333) | spread2(high[0]) | spread6(high[2]);
        const u32 odd = ((r.codes.v[i] >> 2) & 0x33333333) | spread2(high[1]) | spread6(high[3]);
        out[0] = look_up8(even & 0xffff, w.levels);
        out[1] = look_up8(even >> 16, w.levels);
        out[2] = look_up8(odd & 0xffff, w.levels);
        out[3] = look_up8(odd >> 16, w.levels);
    }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        const u32 codes = load4(w.codes + panel * 128 + t / 2 * 64 + row * 4) >> (4 * (t % 2));
        const u64 masks = w.high + panel * 64 + 16 * t + row / 2;
        const u32 first = *(const u8*)masks >> (4 * (row % 2)) & 15, second = *(const u8*)(masks + 8) >> (4 * (row % 2)) & 15;
        const u32 pairs = (codes & 0x03030303) | ((codes >> 2) & 0x03030303) << 4 | spread2(first) | spread6(second);
        out[0] = look_up8(pairs & 0xffff, w.levels);
        out[1] = look_up8(pairs >> 16, w.levels);
    }
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        scales_of(w, r, block, column, quad, 0, s, shift);
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        scale_of(w, row, column, 0, s, shift);
    }
};
