// k4: indices of 4 bits into one of two grids, the second the first one moved; an 8-bit parameter per 32 columns.
#pragma once
#include "formats/nested.cuh"
#include "formats/nibbles.cuh"

struct K4 : Nested<8>, TableNibbles, IntegerFormat<K4> {
    static const bool SHIFTED = true;
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        scales_of(w, r, block, column, quad, 0, s, shift);
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        scale_of(w, row, column, 0, s, shift);
    }
};
