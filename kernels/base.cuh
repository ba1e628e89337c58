// What every kernel file includes: types, the words that differ between the GPU and the host shim, and nothing else.
//
// The same sources compile twice: with NVRTC to PTX, and with the system's C++ compiler against `host/shim.h`, which
// emulates blocks, threads, shared memory, barriers and warp exchanges. So no standard library, no CUDA headers, and no
// CUDA keyword outside this file and `ptx.cuh`.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef ASHLAR_HOST
#include "host/shim.h"
#else

#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define DYNAMIC_SHARED(name) extern __shared__ float4 name##_bytes[]; float* name = (float*)name##_bytes
// A kernel takes one struct by value. `Args` must be the struct of the same name in crates/cuda/src/args.rs.
// At least 512 threads fit on a multiprocessor: no more than 128 registers each.
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads, 512 / threads) name(const Args a)

// The same for kernels that wait for memory: at least 1024 threads, no more than 64 registers each.
#define KERNEL_MANY(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads, 1024 / threads) name(const Args a)

// And for kernels that hold most of what they work on in registers: at least 256 threads, up to 255 registers each.
#define KERNEL_FEW(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads, 256 / threads) name(const Args a)

DEVICE u32 thread_x() { return threadIdx.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }
DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE u32 shuffle_xor(u32 v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE double shuffle_xor(double v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shuffle(float v, u32 lane) { return __shfl_sync(0xffffffffu, v, lane); }

#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

DEVICE float* f32_at(u64 address) { return (float*)address; }
DEVICE u32 lane_of(u32 thread) { return thread & 31; }
DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 parts_of(u32 a, u32 b) { return (a + b - 1) / b; }

// Sums and maxima of a warp: every lane gets the result, in an order that does not depend on the lane.
DEVICE float warp_sum(float v) {
    for (u32 mask = 16; mask > 0; mask >>= 1) v += shuffle_xor(v, mask);
    return v;
}
DEVICE float warp_max(float v) {
    for (u32 mask = 16; mask > 0; mask >>= 1) v = fmaxf(v, shuffle_xor(v, mask));
    return v;
}
