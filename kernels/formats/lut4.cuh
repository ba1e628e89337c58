// Tables of 16 levels that are integers times a unit (iq4nl, mxfp4): 4-bit indices, a scale per group of columns.
#pragma once
#include "formats/nibbles.cuh"

struct Lut4 : GroupScales, TableNibbles, IntegerFormat<Lut4> {
    static const bool SHIFTED = false;
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        GroupScales::scales(w, r, block, column, quad, s);
        for (u32 i = 0; i < 4; i++) shift[i] = 0;
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        s = GroupScales::scale(w, row, column);
        shift = 0;
    }
};
