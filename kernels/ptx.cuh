// Every instruction that C++ has no word for: inline PTX, each with the host twin that the shim runs in its place.
// The twins are the definition; `xtask gpu` compares both on a device, through the conformance suite.
#pragma once
#include "base.cuh"

struct Words2 { u32 v[2]; };
struct Words4 { u32 v[4]; };

#ifndef ASHLAR_HOST

DEVICE float f16_to_f32(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
// Nearest, ties to even; beyond the range infinity.
DEVICE u16 f32_to_f16(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEVICE u32 bits_of(float f) { return __float_as_uint(f); }
DEVICE float of_bits(u32 u) { return __uint_as_float(u); }
// Σ of four products of signed bytes, plus c.
DEVICE i32 dp4a(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
// Byte i of the result is the byte of (b : a) that nibble i of the selector numbers; nibbles must be below 8.
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}
// Stored weights are read once: not kept in L1.
DEVICE Words4 stream16(u64 p) {
    Words4 w;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w.v[0]), "=r"(w.v[1]), "=r"(w.v[2]), "=r"(w.v[3]) : "l"(p));
    return w;
}
DEVICE Words2 load8(u64 p) {
    Words2 w;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(w.v[0]), "=r"(w.v[1]) : "l"(p) : "memory");
    return w;
}
DEVICE Words4 load16(u64 p) {
    Words4 w;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w.v[0]), "=r"(w.v[1]), "=r"(w.v[2]), "=r"(w.v[3]) : "l"(p) : "memory");
    return w;
}
// c[16 × 8] += a[16 × 32] · b[32 × 8], signed bytes. Lane (g = lane / 4, t = lane % 4) holds
// a: rows g, g + 8 of columns 4t.., rows g, g + 8 of columns 16 + 4t..; b: columns g of rows 4t.., 16 + 4t..;
// c: row g of columns 2t, 2t + 1, row g + 8 of the same.
DEVICE void mma_s8_k32(i32 c[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same over 16 columns: a holds rows g and g + 8 of columns 4t.., b columns g of rows 4t...
DEVICE void mma_s8_k16(i32 c[4], const u32 a[2], u32 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}
// c[16 × 8] += a[16 × 8] · b[8 × 8] in tf32 with f32 sums: a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);
// b: (t, g), (t + 4, g).
DEVICE void mma_tf32_k8(float c[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c[16 × 8] += a[16 × 16] · b[16 × 8], halves, two to a register, with f32 sums: a: row g of columns 2t, 2t + 1; row g + 8 of the
// same; both rows of columns 8 + 2t..; b: column g of rows 2t, 2t + 1 and of rows 8 + 2t...
DEVICE void mma_f16_k16(float c[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Two halves in a register, the first one below.
DEVICE u32 pack_f16(float first, float second) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(second), "f"(first));
    return d;
}
DEVICE u32 shared_address(const void* p) {
    u32 d;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(d) : "l"(p));
    return d;
}
// Four matrices of 8 × 8 halves from shared memory; lane 8 i + r names the 16 bytes of row r of matrix i. Register i gets of matrix i
// the row lane / 4, columns 2 (lane % 4) and the next.
DEVICE void load_matrices(u32 out[4], const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)) : "memory");
}
// The same of the transposed matrices: of column lane / 4 the rows 2 (lane % 4) and the next.
DEVICE void load_transposed(u32 out[4], const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)) : "memory");
}
// 16 bytes to shared memory without waiting, zeros if not `here`; what was begun since the last commit is a group.
DEVICE void copy16(u16* to, u64 from, bool here) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(shared_address(to)), "l"(from), "r"(here ? 16 : 0) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits for all groups of this thread but the newest one.
DEVICE void await_copies() { asm volatile("cp.async.wait_group 1;" : : : "memory"); }
// Sets a flag that the host watches: what this thread, and all kernels before, wrote to memory of the host is there when it is seen.
DEVICE void post(u64 flag) {
    asm volatile("fence.acq_rel.sys; st.release.sys.global.u32 [%0], 1;" : : "l"(flag) : "memory");
}
// The nearest number of 11 significant bits, halves away from zero.
DEVICE u32 to_tf32(float f) {
    u32 d;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(f));
    return d;
}

#else

DEVICE u32 bits_of(float f) {
    u32 u;
    __builtin_memcpy(&u, &f, 4);
    return u;
}
DEVICE float of_bits(u32 u) {
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
DEVICE float f16_to_f32(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, abs = h & 0x7fff;
    u32 finite = bits_of(of_bits(abs << 13) * of_bits((127 + 112) << 23));
    return of_bits(sign | (abs >= 0x7c00 ? 0x7f800000 | (abs << 13) : finite));
}
DEVICE u16 f32_to_f16(float f) {
    u32 bits = bits_of(f), sign = (bits >> 16) & 0x8000, abs = bits & 0x7fffffff;
    if (abs > 0x7f800000) return (u16)(sign | 0x7fff);
    u32 normal = (abs + 0xfff + ((abs >> 13) & 1) - (112u << 23)) >> 13;
    u32 subnormal = bits_of(of_bits(abs) + 0.5f) - bits_of(0.5f);
    return (u16)(sign | (abs >= 0x477ff000 ? 0x7c00 : abs < 0x38800000 ? subnormal : normal));
}
DEVICE i32 dp4a(u32 a, u32 b, i32 c) {
    for (u32 i = 0; i < 32; i += 8) c += (i32)(i8)(a >> i) * (i32)(i8)(b >> i);
    return c;
}
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    u64 both = (u64)b << 32 | a;
    u32 d = 0;
    for (u32 i = 0; i < 4; i++) d |= (u32)((both >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return d;
}
DEVICE Words2 load8(u64 p) {
    shim_aligned(p, 8);
    return *(const Words2*)p;
}
DEVICE Words4 load16(u64 p) {
    shim_aligned(p, 16);
    return *(const Words4*)p;
}
DEVICE Words4 stream16(u64 p) { return load16(p); }
DEVICE void mma_s8_k32(i32 c[4], const u32 a[4], const u32 b[2]) {
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const ShimSlots all = shim_exchange(mine, 6);
    const u32 lane = shim_lane(), g = lane / 4, t = lane % 4;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (u32 q = 0; q < 4; q++) {
            const u32 *from_a = all[row % 8 * 4 + q], *from_b = all[column * 4 + q];
            c[i] = dp4a(from_a[row / 8], from_b[4], c[i]);
            c[i] = dp4a(from_a[2 + row / 8], from_b[5], c[i]);
        }
    }
}
DEVICE void mma_s8_k16(i32 c[4], const u32 a[2], u32 b) {
    const u32 mine[3] = {a[0], a[1], b};
    const ShimSlots all = shim_exchange(mine, 3);
    const u32 lane = shim_lane(), g = lane / 4, t = lane % 4;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (u32 q = 0; q < 4; q++) c[i] = dp4a(all[row % 8 * 4 + q][row / 8], all[column * 4 + q][2], c[i]);
    }
}
DEVICE void mma_tf32_k8(float c[4], const u32 a[4], const u32 b[2]) {
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const ShimSlots all = shim_exchange(mine, 6);
    const u32 lane = shim_lane(), g = lane / 4, t = lane % 4;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (u32 half = 0; half < 2; half++)
            for (u32 q = 0; q < 4; q++) {
                const float x = of_bits(all[row % 8 * 4 + q][2 * half + row / 8]), y = of_bits(all[column * 4 + q][4 + half]);
                c[i] += x * y;
            }
    }
}
DEVICE u32 to_tf32(float f) { return (bits_of(f) + 0x1000) & ~0x1fffu; }
DEVICE void post(u64 flag) { __atomic_store_n((u32*)flag, 1u, __ATOMIC_RELEASE); }
DEVICE u32 pack_f16(float first, float second) { return f32_to_f16(first) | (u32)f32_to_f16(second) << 16; }
DEVICE void mma_f16_k16(float c[4], const u32 a[4], const u32 b[2]) {
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const ShimSlots all = shim_exchange(mine, 6);
    const u32 lane = shim_lane(), g = lane / 4, t = lane % 4;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (u32 part = 0; part < 2; part++)
            for (u32 q = 0; q < 4; q++) {
                const u32 x = all[row % 8 * 4 + q][2 * part + row / 8], y = all[column * 4 + q][4 + part];
                c[i] += f16_to_f32((u16)x) * f16_to_f32((u16)y);
                c[i] += f16_to_f32((u16)(x >> 16)) * f16_to_f32((u16)(y >> 16));
            }
    }
}
DEVICE void shim_matrices(u32 out[4], const u16* row, bool transposed) {
    shim_aligned((u64)row, 16);
    const u32 mine[2] = {(u32)(u64)row, (u32)((u64)row >> 32)};
    const ShimSlots all = shim_exchange(mine, 2);
    const u32 g = shim_lane() / 4, t = shim_lane() % 4;
    for (u32 i = 0; i < 4; i++) {
        auto value = [&](u32 r, u32 column) -> u32 {
            const u32* from = all[8 * i + r];
            return ((const u16*)((u64)from[1] << 32 | from[0]))[column];
        };
        out[i] = transposed ? value(2 * t, g) | value(2 * t + 1, g) << 16 : value(g, 2 * t) | value(g, 2 * t + 1) << 16;
    }
}
DEVICE void load_matrices(u32 out[4], const u16* row) { shim_matrices(out, row, false); }
DEVICE void load_transposed(u32 out[4], const u16* row) { shim_matrices(out, row, true); }
// At once: later than on a GPU it cannot be.
DEVICE void copy16(u16* to, u64 from, bool here) {
    shim_aligned((u64)to, 16);
    shim_aligned(from, 16);
    for (u32 i = 0; i < 8; i++) to[i] = here ? ((const u16*)from)[i] : 0;
}
DEVICE void commit_copies() {}
DEVICE void await_copies() {}

#endif

DEVICE float bf16_to_f32(u16 h) { return of_bits((u32)h << 16); }
// 2^(byte − 127); 255 is NaN.
DEVICE float e8m0_to_f32(u8 b) { return b == 0 ? of_bits(0x00400000) : b == 255 ? of_bits(0x7fc00000) : of_bits((u32)b << 23); }
// E4M3: sign, 4 bits of exponent biased by 7, 3 of mantissa; 0x7f and 0xff are NaN.
DEVICE float e4m3_to_f32(u8 b) {
    const u32 abs = b & 0x7f;
    // The exponent field is re-biased by a multiplication with 2^120, exact for subnormals too.
    const float magnitude = abs == 0x7f ? of_bits(0x7fc00000) : of_bits(abs << 20) * of_bits((127u + 120) << 23);
    return b & 0x80 ? -magnitude : magnitude;
}

DEVICE u16 load2(u64 p) { return *(const u16*)p; }
DEVICE u32 load4(u64 p) { return *(const u32*)p; }
