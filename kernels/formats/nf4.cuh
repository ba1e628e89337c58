// Tables of 16 floats (nf4): 4-bit indices, a scale per group of columns. Levels stay f32, so that they are exact.
#pragma once
#include "weight.cuh"

struct Nf4 {
    static const bool ROW_MAJOR = false;
    DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) {
        const u64 panel = (u64)(row / 16) * (w.k / 32) + octet / 4;
        const u32 codes = load4(w.codes + panel * 256 + octet % 4 * 64 + row % 16 * 4);
        const float scale = GroupScales::scale(w, row, octet * 8);
        const float* levels = (const float*)w.floats;
        for (u32 j = 0; j < 8; j++) v[j] = levels[codes >> (8 * (j % 4) + j / 4 * 4) & 15] * scale;
    }
};
