// From packed codes to signed bytes, four to a word, and the order in which activations must then lie.
#pragma once
#include "weight.cuh"

static const u32 ONES = 0x01010101;

// Codes come out of a table look-up in pairs of words: bytes 0, 4, 1, 5 and 2, 6, 3, 7 of eight columns.
DEVICE void interleave(u32& first, u32& second) {
    const u32 a = permute(first, second, 0x5140), b = permute(first, second, 0x7362);
    first = a;
    second = b;
}

// The levels of the four nibbles of `codes`, of a table of 16.
DEVICE u32 look_up16(u32 codes, const u32 levels[4]) {
    const u32 low = permute(levels[0], levels[1], codes & 0x7777), high = permute(levels[2], levels[3], codes & 0x7777);
    return permute(low, high, 0x3210 | ((codes & 0x8888) >> 1));
}
// Of a table of 8: nibbles are below 8.
DEVICE u32 look_up8(u32 codes, const u32 levels[4]) { return permute(levels[0], levels[1], codes); }

// a + b byte by byte, without carries between them.
DEVICE u32 add_bytes(u32 a, u32 b) { return ((a & 0x7f7f7f7f) + (b & 0x7f7f7f7f)) ^ ((a ^ b) & 0x80808080); }

// Bit i of a nibble becomes bit 8 i + 2, or 8 i + 6.
DEVICE u32 spread2(u32 nibble) { return (nibble * 0x00810204) & 0x04040404; }
DEVICE u32 spread6(u32 nibble) { return (nibble * 0x08102040) & 0x40404040; }

// Bytes of an octet of columns as floats, whatever the order.
template <bool INTERLEAVED> DEVICE void floats_of(const u32 words[2], i32 shift, float scale, float v[8]) {
    for (u32 j = 0; j < 8; j++) {
        const u32 word = INTERLEAVED ? j % 4 / 2 : j / 4, byte = INTERLEAVED ? 2 * (j % 2) + j / 4 : j % 4;
        v[j] = (float)((i32)(i8)(words[word] >> (8 * byte)) + shift) * scale;
    }
}

// What every format of integer levels adds to its own functions: see formats/q8.cuh for what those are.
template <class F> struct IntegerFormat {
    // Loads under way per lane where a block computes a pair: 1 for a format whose two would not fit in 64 registers.
    static const int PAIRS_UNDER_WAY = 2;
    // The final levels (shift included) of an octet of columns.
    DEVICE static void level_octet(const Weight& w, u32 row, u32 octet, u32 words[2], float& scale) {
        i32 shift;
        F::octet(w, (u64)(row / 16) * (w.k / 32) + octet / 4, row % 16, octet % 4, words);
        F::scale(w, row, octet * 8, scale, shift);
        if (F::SHIFTED) {
            const u32 bytes = ((u32)shift & 255) * ONES;
            words[0] = add_bytes(words[0], bytes);
            words[1] = add_bytes(words[1], bytes);
        }
    }
    // The eight values of an octet.
    DEVICE static void values(const Weight& w, u32 row, u32 octet, float v[8]) {
        u32 words[2];
        float scale;
        i32 shift;
        F::octet(w, (u64)(row / 16) * (w.k / 32) + octet / 4, row % 16, octet % 4, words);
        F::scale(w, row, octet * 8, scale, shift);
        floats_of<F::INTERLEAVED>(words, shift, scale, v);
    }
};
