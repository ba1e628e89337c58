// What formats with inner and outer scales share: scales and shifts from a group's parameter.
#pragma once
#include "levels.cuh"

template <int BITS> struct Nested : NestedScales<BITS> {
    typedef NestedScales<BITS> S;
    typedef typename S::Rows Rows;
    // `shift`: added to what the parameter says.
    DEVICE static void scales_of(const Weight& w, const Rows& r, u32 block, u32 column, u32 quad, i32 shift, float s[4],
                                 i32 shifts[4]) {
        u32 p[4];
        float outer[4];
        S::parameters4(w, block, column, quad, p);
        if (w.span == 0) {
            for (u32 i = 0; i < 4; i++) outer[i] = r.outer[i];
        } else {
            load_scales4(w.outer, S::outer_index(w, block, column), quad, w.scale_type, outer);
        }
        for (u32 i = 0; i < 4; i++) {
            s[i] = outer[i] * (float)S::inner(w, p[i]);
            shifts[i] = shift + S::moved(w, p[i]);
        }
    }
    DEVICE static void scale_of(const Weight& w, u32 row, u32 column, i32 added, float& s, i32& shift) {
        const u32 p = S::parameter(w, row, column);
        s = S::outer(w, row, column) * (float)S::inner(w, p);
        shift = added + S::moved(w, p);
    }
};
