// Floats as they lie in a checkpoint: row-major, any shape. What a format that meets f32 inputs is to its kernels:
// ROW_MAJOR says how neighbouring threads should walk, `values` gives columns 8 octet.. of a row, 0 beyond k.
#pragma once
#include "exact.cuh"

struct F32 {
    static const bool ROW_MAJOR = true;
    typedef Walk<F32, true> Walked;
    DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) {
        const u64 at = w.codes + 4 * ((u64)row * w.k + octet * 8);
        if (w.k % 8 == 0) {
            const Words4 low = stream16(at), high = stream16(at + 16);
            for (u32 j = 0; j < 8; j++) v[j] = of_bits(j < 4 ? low.v[j] : high.v[j - 4]);
        } else {
            for (u32 j = 0; j < 8; j++) v[j] = octet * 8 + j < w.k ? f32_at(at)[j] : 0.0f;
        }
    }
};

template <bool BRAIN> struct Half {
    static const bool ROW_MAJOR = true;
    typedef Walk<Half<BRAIN>, true> Walked;
    DEVICE static float one(u32 bits) { return BRAIN ? bf16_to_f32((u16)bits) : f16_to_f32((u16)bits); }
    DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) {
        const u64 at = w.codes + 2 * ((u64)row * w.k + octet * 8);
        if (w.k % 8 == 0) {
            const Words4 words = stream16(at);
            for (u32 j = 0; j < 8; j++) v[j] = one(words.v[j / 2] >> (16 * (j % 2)) & 0xffff);
        } else {
            for (u32 j = 0; j < 8; j++) v[j] = octet * 8 + j < w.k ? one(load2(at + 2 * j)) : 0.0f;
        }
    }
};

typedef Half<false> F16;
typedef Half<true> BF16;
