// fp8: E4M3 with one scale per 128 × 128 block.
#pragma once
#include "exact.cuh"

struct Fp8 {
    static const bool ROW_MAJOR = false;
    typedef WalkPanels<Fp8> Walked;
    // Columns 8 part.. of a panel, rows 4 quad..: a vector of 64 bytes has four columns of each of 16 rows.
    DEVICE static void quads(const Weight& w, u32 block, u32 panel, u32 part, u32 quad, float v[4][8]) {
        const u64 at = w.codes + ((u64)block * (w.k / 32) + panel) * 512 + part * 128 + quad * 16;
        const Words4 words[2] = {stream16(at), stream16(at + 64)};
        const float scale = load_scale(w.scales, (u64)(block / 8) * parts_of(w.k, 128) + panel / 4, w.scale_type);
        for (u32 i = 0; i < 4; i++)
            for (u32 j = 0; j < 8; j++) v[i][j] = e4m3_to_f32((u8)(words[j / 4].v[i] >> (8 * (j % 4)))) * scale;
    }
    DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) {
        const u64 panel = (u64)(row / 16) * (w.k / 32) + octet / 4;
        const u64 at = w.codes + panel * 512 + octet % 4 * 128 + row % 16 * 4;
        const u32 words[2] = {load4(at), load4(at + 64)};
        const float scale = load_scale(w.scales, (u64)(row / 128) * parts_of(w.k, 128) + octet / 16, w.scale_type);
        for (u32 j = 0; j < 8; j++) v[j] = e4m3_to_f32((u8)(words[j / 4] >> (8 * (j % 4)))) * scale;
    }
};
