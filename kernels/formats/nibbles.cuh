// Codes of 4 bits that are places in a table of 16 levels: how a panel is read, whatever its scales.
#pragma once
#include "levels.cuh"

struct TableNibbles {
    static const u32 SPAN = 8, GROUPS = 1;
    static const bool INTERLEAVED = true;
    struct Raw { Words4 codes; };
    DEVICE static void load(const Weight& w, u64 panel, u32 part, u32 quad, Raw& r) {
        r.codes = stream16(w.codes + panel * 256 + part * 64 + quad * 16);
    }
    DEVICE static void words(const Weight& w, const Raw& r, u32 i, u32 out[2]) { nibbles(w, r.codes.v[i], out); }
    DEVICE static void nibbles(const Weight& w, u32 codes, u32 out[2]) {
        out[0] = look_up16(codes & 0xffff, w.levels);
        out[1] = look_up16(codes >> 16, w.levels);
    }
    DEVICE static void octet(const Weight& w, u64 panel, u32 row, u32 t, u32 out[2]) {
        nibbles(w, load4(w.codes + panel * 256 + t * 64 + row * 4), out);
    }
};
