// Paged caches. A page has 64 positions; `table[slot · pages + p]` is the address of page p of a slot.
//
// A page of heads: for every head keys [64][key_width], values [64][value_width], then f16 scales of keys [64] and of values
// [64][⌈dim / 32⌉] where the format has them. A page of tokens: [64][width], and a second [64][width]. A page of entries: 64 of them, as
// native.cuh stores them, `key_width` bytes each.
#pragma once
#include "ptx.cuh"

static const u32 PAGE = 64;
enum KvFormat { KV_F32 = 0, KV_F16 = 1, KV_Q8 = 2 };

struct Cache {
    u64 table;
    // Pages of a slot.
    u32 pages;
    u32 heads, dim, key_width, value_width, format;
    // Bytes of a head in a page. Of entries 1: `format` is an `EntryFormat` then, `value_width` how many of the first values are apart.
    u32 region, entries;
};

DEVICE u64 page_of(const Cache& c, u32 slot, u32 position) { return ((const u64*)c.table)[(u64)slot * c.pages + position / PAGE]; }
DEVICE u32 code_bytes(const Cache& c) { return c.format == KV_F32 ? 4 : c.format == KV_F16 ? 2 : 1; }
// Of one head at one position: codes of the key or of the value, and their first scale.
DEVICE u64 codes_of(const Cache& c, u32 slot, u32 position, u32 head, bool value) {
    const u32 keys = PAGE * c.key_width, at = position % PAGE;
    return page_of(c, slot, position) + (u64)head * c.region + (u64)code_bytes(c) * (value ? keys + at * c.value_width : at * c.key_width);
}
DEVICE u64 scales_of(const Cache& c, u32 slot, u32 position, u32 head, bool value) {
    const u32 at = position % PAGE, groups = (c.dim + 31) / 32;
    const u64 codes = (u64)code_bytes(c) * PAGE * (c.key_width + c.value_width);
    return page_of(c, slot, position) + (u64)head * c.region + codes + 2 * (value ? PAGE + at * groups : at);
}

// Eight neighbouring entries from `column` on, a multiple of 8; entries beyond `width` are 0.
DEVICE void load_entries(const Cache& c, u64 codes, u64 scales, bool value, u32 column, u32 width, float v[8]) {
    if (c.format == KV_F32) {
        for (u32 j = 0; j < 8; j++) v[j] = column + j < width ? f32_at(codes)[column + j] : 0.0f;
    } else if (c.format == KV_F16) {
        const u64 at = codes + 2 * column;
        if (at % 16 == 0 && column + 8 <= width) {
            const Words4 w = load16(at);
            for (u32 j = 0; j < 8; j++) v[j] = f16_to_f32((u16)(w.v[j / 2] >> (16 * (j % 2))));
        } else {
            for (u32 j = 0; j < 8; j++) v[j] = column + j < width ? f16_to_f32(load2(at + 2 * j)) : 0.0f;
        }
    } else {
        const float scale = f16_to_f32(load2(scales + (value ? column / 32 * 2 : 0)));
        for (u32 j = 0; j < 8; j++) v[j] = column + j < width ? (float)((const i8*)codes)[column + j] * scale : 0.0f;
    }
}
