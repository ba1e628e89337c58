// A loaded weight, n outputs × k inputs, and the scales of its groups. Panels of 16 rows × 32 columns as they lie on disk
// (docs/format.md); a row block is 16 rows.
#pragma once
#include "ptx.cuh"

enum ScaleType { SCALE_F16 = 0, SCALE_BF16 = 1, SCALE_F32 = 2, SCALE_E8M0 = 3 };

// crates/cuda/src/args.rs has its twin.
struct Weight {
    // Addresses of planes; 0 where there is none. `floats`: the 16 levels of a table of floats.
    u64 codes, high, scales, outer, zeros, outliers, floats;
    // The integer level of every code, a byte each.
    u32 levels[4];
    // What an integer level is multiplied with.
    float unit;
    // How far the second of two grids lies above the first.
    i32 moved;
    // Inner scale of a parameter p: step · (p >> 1) − zero.
    i32 step, zero;
    u32 n, k;
    // Which module reads it.
    u32 kind;
    // Outliers per row.
    u32 slots;
    // log2 of the columns of a group.
    u32 group_shift;
    // Columns of an outer scale; 0: the row.
    u32 span;
    u32 scale_type;
    // 1 if it meets inputs rounded to int8.
    u32 rounded;
};

DEVICE float load_scale(u64 plane, u64 index, u32 type) {
    switch (type) {
        case SCALE_F16: return f16_to_f32(load2(plane + 2 * index));
        case SCALE_BF16: return bf16_to_f32(load2(plane + 2 * index));
        case SCALE_F32: return *(const float*)(plane + 4 * index);
        default: return e8m0_to_f32(*(const u8*)(plane + index));
    }
}

// The scales of rows 4 quad.. of the 16 from `index` on.
DEVICE void load_scales4(u64 plane, u64 index, u32 quad, u32 type, float out[4]) {
    index += 4 * quad;
    if (type == SCALE_F16) {
        const Words2 w = load8(plane + 2 * index);
        for (u32 i = 0; i < 4; i++) out[i] = f16_to_f32((u16)(w.v[i / 2] >> (16 * (i % 2))));
    } else if (type == SCALE_F32) {
        const Words4 w = load16(plane + 4 * index);
        for (u32 i = 0; i < 4; i++) out[i] = of_bits(w.v[i]);
    } else {
        for (u32 i = 0; i < 4; i++) out[i] = load_scale(plane, index + i, type);
    }
}

// One float scale per row and group, and perhaps a zero point.
struct GroupScales {
    struct Rows {};
    DEVICE static void rows(const Weight&, u32, u32, Rows&) {}
    DEVICE static u64 index(const Weight& w, u32 block, u32 column) {
        return ((u64)block * (w.k >> w.group_shift) + (column >> w.group_shift)) * 16;
    }
    // Scales of rows 4 quad.. of a row block at `column`.
    DEVICE static void scales(const Weight& w, const Rows&, u32 block, u32 column, u32 quad, float s[4]) {
        load_scales4(w.scales, index(w, block, column), quad, w.scale_type, s);
        for (u32 i = 0; i < 4; i++) s[i] *= w.unit;
    }
    DEVICE static float scale(const Weight& w, u32 row, u32 column) {
        return load_scale(w.scales, index(w, row / 16, column) + row % 16, w.scale_type) * w.unit;
    }
};

// A parameter per row and group, times an outer scale per row or span.
template <int BITS> struct NestedScales {
    // Outer scales of four rows, where they are the row's.
    struct Rows { float outer[4]; };
    DEVICE static u64 outer_index(const Weight& w, u32 block, u32 column) {
        return w.span == 0 ? (u64)block * 16 : ((u64)block * parts_of(w.k, w.span) + column / w.span) * 16;
    }
    DEVICE static void rows(const Weight& w, u32 block, u32 quad, Rows& r) {
        if (w.span == 0) load_scales4(w.outer, outer_index(w, block, 0), quad, w.scale_type, r.outer);
    }
    // The parameters of 16 rows: bytes, or nibbles and then the bits above them.
    DEVICE static u64 parameters(const Weight& w, u32 block, u32 column) {
        return w.scales + ((u64)block * (w.k >> w.group_shift) + (column >> w.group_shift)) * (BITS * 2);
    }
    DEVICE static void parameters4(const Weight& w, u32 block, u32 column, u32 quad, u32 p[4]) {
        const u64 at = parameters(w, block, column);
        if (BITS == 8) {
            const u32 bytes = load4(at + 4 * quad);
            for (u32 i = 0; i < 4; i++) p[i] = (bytes >> (8 * i)) & 255;
        } else {
            const u32 low = load2(at + 2 * quad);
            const u32 high = BITS == 6 ? *(const u8*)(at + 8 + quad) : load2(at + 8) >> (4 * quad);
            for (u32 i = 0; i < 4; i++) {
                const u32 above = BITS == 6 ? (high >> (2 * i)) & 3 : (high >> i) & 1;
                p[i] = ((low >> (4 * i)) & 15) | above << 4;
            }
        }
    }
    DEVICE static i32 inner(const Weight& w, u32 p) { return w.step == 0 ? (i32)(i8)p : w.step * (i32)(p >> 1) - w.zero; }
    // Where there are two grids, how far the chosen one lies above the first.
    DEVICE static i32 moved(const Weight& w, u32 p) { return w.step == 0 ? 0 : p & 1 ? w.moved : 0; }
    DEVICE static u32 parameter(const Weight& w, u32 row, u32 column) {
        u32 p[4];
        parameters4(w, row / 16, column, row % 16 / 4, p);
        const u32 i = row % 4;
        return i == 0 ? p[0] : i == 1 ? p[1] : i == 2 ? p[2] : p[3];
    }
    DEVICE static float outer(const Weight& w, u32 row, u32 column) {
        return load_scale(w.outer, outer_index(w, row / 16, column) + row % 16, w.scale_type);
    }
};
