// Rounding that DeepSeek-V4 was trained with, to the very bits of `ashlar_backend`'s `EntryFormat`: what storing keeps.
//
// An entry: f32, halves, or E4M3 codes of the first `plain` values, the others in bf16, then an exponent per 64 codes; or two codes of
// E2M1 per byte, the lower half first, then an exponent per 32.
#pragma once
#include "cache.cuh"

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
DEVICE float e2m1_to_f32(u32 code) {
    // One bit of mantissa below two of exponent; codes 0 and 1 are subnormal.
    const u32 m = code & 7;
    const float magnitude = m < 2 ? 0.5f * (float)m : of_bits((m / 2 + 126) << 23 | (m & 1) << 22);
    return code & 8 ? -magnitude : magnitude;
}
// The code of the nearest of 0, ½, 1, 1½, 2, 3, 4, 6 with its sign, ties to even codes.
DEVICE u32 f32_to_e2m1(float v) {
    const float middles[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    const float magnitude = fabsf(v);
    u32 code = 0;
    for (u32 i = 0; i < 7; i++)
        if (magnitude > middles[i] || (magnitude == middles[i] && i % 2 == 1)) code = i + 1;
    return code | (bits_of(v) >> 31) << 3;
}
// The least power of two by which `greatest` comes to `max` at most.
DEVICE float power_over(float greatest, float max) {
    const u32 bits = bits_of(greatest / max), exponent = (bits >> 23) + ((bits & 0x7fffff) != 0);
    return of_bits((exponent < 1 ? 1 : exponent > 254 ? 254 : exponent) << 23);
}

// A vector that a block of 256 threads rounds: its values, turned where the format says so, and the scales of its groups.
struct Rounded {
    float v[MOST_WIDTH], scales[MOST_WIDTH / 32];
};

DEVICE u32 group_of(u32 format) { return format == ENTRY_FP8 ? 64 : 32; }
DEVICE u32 scaled_of(u32 format, u32 width, u32 plain) { return format == ENTRY_FP8 ? plain : format == ENTRY_FP4 ? width : 0; }

DEVICE void scale_vector(Rounded& r, u32 width, u32 format, u32 plain) {
    const u32 thread = thread_x(), group = group_of(format);
    sync_threads();
    if (format == ENTRY_FP4) {
        for (u32 half = 1; half < width; half *= 2) {
            for (u32 pair = thread; pair < width / 2; pair += 256) {
                const u32 at = pair / half * 2 * half + pair % half;
                const float a = r.v[at], b = r.v[at + half];
                r.v[at] = a + b;
                r.v[at + half] = a - b;
            }
            sync_threads();
        }
        const float factor = (float)(1.0 / sqrt((double)width));
        for (u32 i = thread; i < width; i += 256) r.v[i] *= factor;
        sync_threads();
    }
    const u32 scaled = scaled_of(format, width, plain);
    if (thread < parts_of(scaled, group)) {
        float greatest = format == ENTRY_FP8 ? 1e-4f : 6.0f * of_bits(0x00800000);
        for (u32 i = thread * group; i < least(scaled, (thread + 1) * group); i++) greatest = fmaxf(greatest, fabsf(r.v[i]));
        r.scales[thread] = power_over(greatest, format == ENTRY_FP8 ? 448.0f : 6.0f);
    }
    sync_threads();
}

// The code of value i, as many bits as its format has.
DEVICE u32 code_of(const Rounded& r, u32 i, u32 width, u32 format, u32 plain) {
    const float v = r.v[i];
    if (i < scaled_of(format, width, plain)) {
        const float part = v * (1.0f / r.scales[i / group_of(format)]);
        return format == ENTRY_FP8 ? f32_to_e4m3(part) : f32_to_e2m1(part);
    }
    if (format == ENTRY_FP8) return bits_of(round_bf16(v)) >> 16;
    return format == ENTRY_F16 ? f32_to_f16(fminf(fmaxf(v, -65504.0f), 65504.0f)) : bits_of(v);
}

// out = what storing keeps.
DEVICE void keep_vector(const Rounded& r, float* out, u32 width, u32 format, u32 plain) {
    for (u32 i = thread_x(); i < width; i += 256) {
        const u32 code = code_of(r, i, width, format, plain);
        if (i < scaled_of(format, width, plain))
            out[i] = (format == ENTRY_FP8 ? e4m3_to_f32((u8)code) : e2m1_to_f32(code)) * r.scales[i / group_of(format)];
        else
            out[i] = format == ENTRY_FP8 ? of_bits(code << 16) : format == ENTRY_F16 ? f16_to_f32((u16)code) : of_bits(code);
    }
}

DEVICE void store_vector(const Rounded& r, u64 to, u32 width, u32 format, u32 plain) {
    const u32 scaled = scaled_of(format, width, plain), codes = format == ENTRY_FP4 ? width / 2 : plain;
    if (format == ENTRY_FP4) {
        for (u32 i = thread_x(); i < width / 2; i += 256)
            ((u8*)to)[i] = (u8)(code_of(r, 2 * i, width, format, plain) | code_of(r, 2 * i + 1, width, format, plain) << 4);
    } else {
        for (u32 i = thread_x(); i < width; i += 256) {
            const u32 code = code_of(r, i, width, format, plain);
            if (i < scaled) ((u8*)to)[i] = (u8)code;
            // Odd numbers of codes leave no place for halves: they go byte by byte.
            else if (format == ENTRY_FP8) ((u8*)(to + plain))[2 * (i - plain)] = (u8)code, ((u8*)(to + plain))[2 * (i - plain) + 1] = (u8)(code >> 8);
            else if (format == ENTRY_F16) ((u16*)to)[i] = (u16)code;
            else ((u32*)to)[i] = code;
        }
    }
    const u64 exponents = to + codes + (format == ENTRY_FP8 ? 2 * (width - plain) : 0);
    for (u32 i = thread_x(); i < parts_of(scaled, group_of(format)); i += 256) ((u8*)exponents)[i] = (u8)(bits_of(r.scales[i]) >> 23);
}

// Where entry `number` of a slot lies.
DEVICE u64 entry_of(const Cache& c, u32 slot, u32 number) { return page_of(c, slot, number) + (u64)c.key_width * (number % PAGE); }

// Value i of an entry.
DEVICE float entry_value(const Cache& c, u64 entry, u32 i) {
    const u32 plain = c.value_width;
    if (c.format == ENTRY_F32) return f32_at(entry)[i];
    if (c.format == ENTRY_F16) return f16_to_f32(load2(entry + 2 * i));
    if (c.format == ENTRY_FP4) {
        const u32 exponent = ((const u8*)entry)[c.dim / 2 + i / 32];
        return e2m1_to_f32(((const u8*)entry)[i / 2] >> (4 * (i % 2)) & 15) * of_bits(exponent << 23);
    }
    if (i < plain) {
        const u32 exponent = ((const u8*)entry)[plain + 2 * (c.dim - plain) + i / 64];
        return e4m3_to_f32(((const u8*)entry)[i]) * of_bits(exponent << 23);
    }
    const u8* half = (const u8*)entry + plain + 2 * (i - plain);
    return bf16_to_f32((u16)(half[0] | half[1] << 8));
}

// Eight neighbouring values from `column` on, a multiple of 8; those behind the entry are 0.
DEVICE void load_entry(const Cache& c, u64 entry, u32 column, float v[8]) {
    const u32 plain = c.value_width;
    if (c.format == ENTRY_FP8 && column + 8 <= plain) {
        const Words2 w = load8(entry + column);
        const float scale = of_bits((u32)((const u8*)entry)[plain + 2 * (c.dim - plain) + column / 64] << 23);
        for (u32 j = 0; j < 8; j++) v[j] = e4m3_to_f32((u8)(w.v[j / 4] >> (8 * (j % 4)))) * scale;
        return;
    }
    for (u32 j = 0; j < 8; j++) v[j] = column + j < c.dim ? entry_value(c, entry, column + j) : 0.0f;
}
