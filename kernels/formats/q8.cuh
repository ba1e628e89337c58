// q8: signed bytes, an f16 scale per 32 columns. A 64-byte vector of a panel has 4 columns of each of 16 rows.
//
// What a format of integers is to its kernels (a thread of a small product reads SPAN columns of four rows):
//   SPAN         8 or 16
//   GROUPS       groups of scales in a panel, 1 or 2
//   INTERLEAVED  whether words hold columns 0 4 1 5 and 2 6 3 7 (span 8), or 0 8 1 9, 2 10 3 11, 4 12 … (span 16)
//   SHIFTED      whether every level of a group is to be moved by an integer
//   load, words  16-byte loads of rows 4 quad.. of a panel, and the levels of one of the rows
//   octet        the levels of 8 columns of one row
//   scales, scale  with the shift, for four rows and for one
#pragma once
#include "levels.cuh"

struct Q8 : GroupScales, IntegerFormat<Q8> {
    static const u32 SPAN = 8, GROUPS = 1;
    static const bool INTERLEAVED = false, SHIFTED = false;
    struct Raw { Words4 a, b; };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        const u64 at = w.codes + panel * 512 + part * 128 + quad * 16;
        r.a = stream16(at);
        r.b = stream16(at + 64);
    }
    DEVICE static void words(const Weight&, const Raw& r, u32 i, u32 out[2]) {
        out[0] = r.a.v[i];
        out[1] = r.b.v[i];
    }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        const u64 at = w.codes + panel * 512 + t * 128 + row * 4;
        out[0] = load4(at);
        out[1] = load4(at + 64);
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
