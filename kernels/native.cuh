// Rounding that DeepSeek-V4 was trained with, to the very values of `ashlar_backend`'s `EntryFormat`: what storing keeps.
#pragma once
#include "ptx.cuh"

enum EntryFormat { ENTRY_F32 = 0, ENTRY_F16 = 1, ENTRY_FP8 = 2, ENTRY_FP4 = 3 };
// The widest entry that is rounded.
static const u32 MOST_WIDTH = 1024;

// The nearest code of E4M3, ties to even; beyond ±448 the largest.
DEVICE u8 f32_to_e4m3(float x) {
    const u32 bits = bits_of(x), sign = (bits >> 24) & 0x80, abs = bits & 0x7fffffff;
    const u32 normal = (abs + 0x7ffff + ((abs >> 20) & 1) - (120u << 23)) >> 20;
    const u32 subnormal = bits_of(of_bits(abs) + 16384.0f) - bits_of(16384.0f);
    const u32 finite = abs < 0x3c800000 ? subnormal : normal;
    return (u8)(sign | (abs > 0x43e00000 ? 0x7e : least(finite, 0x7e)));
}
DEVICE float round_bf16(float x) {
    const u32 bits = bits_of(x);
    return of_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}
// The nearest of 0, ½, 1, 1½, 2, 3, 4, 6 with its sign, ties to even codes.
DEVICE float round_e2m1(float v) {
    const float levels[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    const float middles[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    const float magnitude = fabsf(v);
    float rounded = 0.0f;
    for (u32 i = 0; i < 7; i++)
        if (magnitude > middles[i] || (magnitude == middles[i] && i % 2 == 1)) rounded = levels[i + 1];
    return bits_of(v) >> 31 ? -rounded : rounded;
}
// The least power of two by which `greatest` comes to `max` at most.
DEVICE float power_over(float greatest, float max) {
    const u32 bits = bits_of(greatest / max), exponent = (bits >> 23) + ((bits & 0x7fffff) != 0);
    return of_bits((exponent < 1 ? 1 : exponent > 254 ? 254 : exponent) << 23);
}

// A block of 256 threads replaces a vector of `width` values by what storing keeps of it. x and out may be the same.
DEVICE void round_vector(const float* x, float* out, u32 width, u32 format, u32 plain) {
    SHARED float v[MOST_WIDTH], scales[MOST_WIDTH / 32];
    const u32 thread = thread_x(), group = format == ENTRY_FP8 ? 64 : 32;
    sync_threads();
    for (u32 i = thread; i < width; i += 256) v[i] = x[i];
    sync_threads();
    if (format == ENTRY_FP4) {
        for (u32 half = 1; half < width; half *= 2) {
            for (u32 pair = thread; pair < width / 2; pair += 256) {
                const u32 at = pair / half * 2 * half + pair % half;
                const float a = v[at], b = v[at + half];
                v[at] = a + b;
                v[at + half] = a - b;
            }
            sync_threads();
        }
        const float factor = (float)(1.0 / sqrt((double)width));
        for (u32 i = thread; i < width; i += 256) v[i] *= factor;
        sync_threads();
    }
    const u32 scaled = format == ENTRY_FP8 ? plain : format == ENTRY_FP4 ? width : 0;
    if (thread < parts_of(scaled, group)) {
        float greatest = format == ENTRY_FP8 ? 1e-4f : 6.0f * of_bits(0x00800000);
        for (u32 i = thread * group; i < least(scaled, (thread + 1) * group); i++) greatest = fmaxf(greatest, fabsf(v[i]));
        scales[thread] = power_over(greatest, format == ENTRY_FP8 ? 448.0f : 6.0f);
    }
    sync_threads();
    for (u32 i = thread; i < width; i += 256) {
        float kept = v[i];
        if (i < scaled) {
            const float scale = scales[i / group], part = kept * (1.0f / scale);
            kept = (format == ENTRY_FP8 ? e4m3_to_f32(f32_to_e4m3(part)) : round_e2m1(part)) * scale;
        } else if (format == ENTRY_FP8) {
            kept = round_bf16(kept);
        } else if (format == ENTRY_F16) {
            kept = f16_to_f32(f32_to_f16(fminf(fmaxf(kept, -65504.0f), 65504.0f)));
        }
        out[i] = kept;
    }
    sync_threads();
}
