// k4: indices of 4 bits into one of two grids, the second the first one moved; an 8-bit parameter per 32 columns.
#pragma once
#include "formats/nested.cuh"

struct K4 : Nested<8>, IntegerFormat<K4> {
    static const u32 SPAN = 8, GROUPS = 1;
    static const bool INTERLEAVED = true, SHIFTED = true;
    struct Raw { Words4 codes; };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        r.codes = stream16(w.codes + panel * 256 + part * 64 + quad * 16);
    }
    DEVICE static void words(const Weight& w, const Raw& r, u32 i, u32 out[2]) { nibbles(w, r.codes.v[i], out); }
    DEVICE static void nibbles(const Weight& w, u32 codes, u32 out[2]) {
        out[0] = look_up16(codes & 0xffff, w.levels);
        out[1] = look_up16(codes >> 16, w.levels);
    }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        nibbles(w, load4(w.codes + panel * 256 + t * 64 + row * 4), out);
    }
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        scales_of(w, r, block, column, quad, 0, s, shift);
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        scale_of(w, row, column, 0, s, shift);
    }
};
