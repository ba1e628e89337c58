// Tables of 16 levels that are integers times a unit (iq4nl, mxfp4): 4-bit indices, a scale per group of columns.
#pragma once
#include "levels.cuh"

struct Lut4 : GroupScales, IntegerFormat<Lut4> {
    static const u32 SPAN = 8, GROUPS = 1;
    static const bool INTERLEAVED = true, SHIFTED = false;
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
        GroupScales::scales(w, r, block, column, quad, s);
        for (u32 i = 0; i < 4; i++) shift[i] = 0;
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        s = GroupScales::scale(w, row, column);
        shift = 0;
    }
};
