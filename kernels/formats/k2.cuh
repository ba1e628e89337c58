// k2: indices of 2 bits into one of two grids, a 6-bit parameter per 32 columns, an outer scale per row.
// k2h: a 5-bit parameter per 16 columns, an outer scale per 256.
#pragma once
#include "formats/nested.cuh"

template <int BITS, u32 PER_PANEL> struct TwoBits : Nested<BITS>, IntegerFormat<TwoBits<BITS, PER_PANEL>> {
    typedef typename Nested<BITS>::Rows Rows;
    static const u32 SPAN = 16, GROUPS = PER_PANEL;
    static const bool INTERLEAVED = true, SHIFTED = true;
    struct Raw { Words4 codes; };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        r.codes = stream16(w.codes + panel * 128 + part * 64 + quad * 16);
    }
    // Bits 2j, 2j + 1 of byte b are column 4j + b: a word of nibbles has columns 4j + b and 4j + 8 + b side by side.
    DEVICE static void words(const Weight& w, const Raw& r, u32 i, u32 out[4]) {
        const u32 even = r.codes.v[i] & 0x33333333, odd = (r.codes.v[i] >> 2) & 0x33333333;
        out[0] = look_up8(even & 0xffff, w.levels);
        out[1] = look_up8(even >> 16, w.levels);
        out[2] = look_up8(odd & 0xffff, w.levels);
        out[3] = look_up8(odd >> 16, w.levels);
    }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        const u32 codes = load4(w.codes + panel * 128 + t / 2 * 64 + row * 4) >> (4 * (t % 2));
        const u32 pairs = (codes & 0x03030303) | ((codes >> 2) & 0x03030303) << 4;
        out[0] = look_up8(pairs & 0xffff, w.levels);
        out[1] = look_up8(pairs >> 16, w.levels);
    }
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        Nested<BITS>::scales_of(w, r, block, column, quad, 0, s, shift);
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        Nested<BITS>::scale_of(w, row, column, 0, s, shift);
    }
};

typedef TwoBits<6, 1> K2;
typedef TwoBits<5, 2> K2h;
