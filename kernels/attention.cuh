// What kernels of attention are told.
#pragma once
#include "native.cuh"

struct AttentionArgs {
    Cache cache;
    // Pooled keys; none if `ratio` is 0.
    Cache entries;
    u64 q, out, sinks, positions, slots;
    // Of every tile: its first row (token · heads of a group + head of it) and how many.
    u64 tiles;
    // Rows × listed numbers of entries, as floats; 0 for all that are complete.
    u64 selected;
    // Of every row and split: greatest score, sum of weights; weighted values.
    u64 parts, sums;
    // Query heads per key head, width of a value, keys visible to a query (0: all), positions of a split.
    u32 group, value_dim, window, split;
    u32 splits, ratio, listed, values_in_keys;
    float scale;
    u32 reserved;
};

static const float NEVER = -3.0e38f;
