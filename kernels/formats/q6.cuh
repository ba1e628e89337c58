// q6: codes of 4 + 2 bits less 32, a signed byte of scale per 16 columns, an f16 scale per 256.
#pragma once
#include "formats/nested.cuh"

struct Q6 : Nested<8>, IntegerFormat<Q6> {
    static const u32 SPAN = 8, GROUPS = 2;
    static const bool INTERLEAVED = false, SHIFTED = true;
    struct Raw {
        Words4 low, high;
        u32 bits;
    };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        r.low = stream16(w.codes + panel * 256 + part * 64 + quad * 16);
        r.high = load16(w.high + panel * 128 + part / 2 * 64 + quad * 16);
        r.bits = 4 * (part % 2);
    }
    DEVICE static void join(u32 low, u32 high, u32 out[2]) {
        out[0] = (low & 0x0f0f0f0f) | (high & 0x03030303) << 4;
        out[1] = ((low >> 4) & 0x0f0f0f0f) | ((high >> 2) & 0x03030303) << 4;
    }
    DEVICE static void words(const Weight&, const Raw& r, u32 i, u32 out[2]) { join(r.low.v[i], r.high.v[i] >> r.bits, out); }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        const u32 low = load4(w.codes + panel * 256 + t * 64 + row * 4);
        join(low, load4(w.high + panel * 128 + t / 2 * 64 + row * 4) >> (4 * (t % 2)), out);
    }
    DEVICE static void scales(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, float s[4], i32 shift[4]) {
        scales_of(w, r, block, column, quad, -32, s, shift);
    }
    DEVICE static void scale(const Weight& w, u32 row, u32 column, float& s, i32& shift) {
        scale_of(w, row, column, -32, s, shift);
    }
};
