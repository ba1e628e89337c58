// Tables of 16 floats (nf4): 4-bit indices, a scale per group of columns. Levels stay f32, so that they are exact.
#pragma once
#include "exact.cuh"

struct Nf4 {
    static const bool ROW_MAJOR = false;
    typedef WalkPanels<Nf4> Walked;
    // Columns 8 part.. of a panel, rows 4 quad...
    DEVICE static void quads(const Weight& w, u32 block, u32 panel, u32 part, u32 quad, float v[4][8]) {
        const Words4 codes = stream16(w.codes + ((u64)block * (w.k / 32) + panel) * 256 + part * 64 + quad * 16);
        float scales[4];
        GroupScales::Rows none;
        GroupScales::scales(w, none, block, panel * 32 + part * 8, quad, scales);
        const float* levels = (const float*)w.floats;
        for (u32 i = 0; i < 4; i++)
            for (u32 j = 0; j < 8; j++) v[i][j] = levels[codes.v[i] >> (8 * (j % 4) + j / 4 * 4) & 15] * scales[i];
    }
    DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) {
        const u64 panel = (u64)(row / 16) * (w.k / 32) + octet / 4;
        const u32 codes = load4(w.codes + panel * 256 + octet % 4 * 64 + row % 16 * 4);
        const float scale = GroupScales::scale(w, row, octet * 8);
        const float* levels = (const float*)w.floats;
        for (u32 j = 0; j < 8; j++) v[j] = levels[codes >> (8 * (j % 4) + j / 4 * 4) & 15] * scale;
    }
};
