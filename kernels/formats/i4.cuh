// i4: codes of 4 bits, an f16 scale per 32, 64 or 128 columns, value (code − zero) · scale; zero is 8 or the group's own.
#pragma once
#include "levels.cuh"

struct I4 : GroupScales, IntegerFormat<I4> {
    static const u32 SPAN = 8, GROUPS = 1;
    static const bool INTERLEAVED = false, SHIFTED = true;
    struct Raw { Words4 codes; };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        r.codes = stream16(w.codes + panel * 256 + part * 64 + quad * 16);
    }
    DEVICE static void words(const Weight&, const Raw& r, u32 i, u32 out[2]) { nibbles(r.codes.v[i], out); }
    DEVICE static void nibbles(u32 codes, u32 out[2]) {
        out[0] = codes & 0x0f0f0f0f;
        out[1] = (codes >> 4) & 0x0f0f0f0f;
    }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        nibbles(load4(w.codes + panel * 256 + t * 64 + row * 4), out);
    }
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        GroupScales::scales(w, r, block, column, quad, s);
        const u32 zeros = w.zeros ? load4(w.zeros + index(w, block, column) + 4 * quad) : 8 * ONES;
        for (u32 i = 0; i < 4; i++) shift[i] = -(i32)((zeros >> (8 * i)) & 255);
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        s = GroupScales::scale(w, row, column);
        shift = w.zeros ? -(i32) * (const u8*)(w.zeros + index(w, row / 16, column) + row % 16) : -8;
    }
};
