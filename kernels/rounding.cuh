// Rounding of activations to int8, to the very codes of `ashlar_backend::round_int8`.
#pragma once
#include "ptx.cuh"

// max / 127 rounded up to four significant bits; 0 below 2^-100, infinite above 2^100.
DEVICE float int8_scale(float max) {
    const float largest = of_bits((127u + 100) << 23), exact = max / 127.0f;
    if (exact > largest) return of_bits(0x7f800000);
    if (exact < 1.0f / largest) return 0.0f;
    return of_bits((bits_of(exact) + 0xfffff) & ~0xfffffu);
}

// A warp rounds 32 neighbouring values, one per lane: value number `index` of the plane, a multiple of 32 plus the lane.
DEVICE void round_warp(float v, u64 codes, u64 scales, u64 index) {
    const float scale = int8_scale(warp_max(fabsf(v)));
    const float code = scale == 0.0f ? 0.0f : rintf(v * (1.0f / scale));
    // Not a number stays a code: its scale makes the products infinite.
    ((i8*)codes)[index] = (i8)(i32)fminf(fmaxf(code, -128.0f), 127.0f);
    if (index % 32 == 0) f32_at(scales)[index / 32] = scale;
}
