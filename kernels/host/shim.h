// The host shim: what `base.cuh` needs to run kernels on the CPU, for tests. A block's threads are fibers that take turns
// on one thread of the operating system; blocks run one after the other; shared memory is thread-local.
// Evidence of correctness only: nothing here says how fast a GPU is.
#pragma once
#include <math.h>

#define DEVICE inline
#define SHARED static thread_local
#define DYNAMIC_SHARED(name) float* name = (float*)shim_dynamic()
#define KERNEL(name, Args, threads) KERNEL_(name, Args)
#define KERNEL_MANY(name, Args, threads) KERNEL_(name, Args)
#define KERNEL_FEW(name, Args, threads) KERNEL_(name, Args)
#define KERNEL_(name, Args)                                                      \
    static void name##_body(const Args& a);                                      \
    extern "C" unsigned name##_args() { return sizeof(Args); }                   \
    extern "C" void name(const void* args) { name##_body(*(const Args*)args); }  \
    static void name##_body(const Args& a)

// What a warp's lanes handed over in one exchange, by lane.
typedef const u32 (*ShimSlots)[8];

struct ShimPlace { u32 thread, block[3], grid[3]; };
// The fiber that runs now.
const ShimPlace& shim_place();
// Waits until every lane of the warp has handed over `count` words (at most 8).
ShimSlots shim_exchange(const u32* words, u32 count);
void* shim_dynamic();
// Ends the process with the kernel's name if an address is not a multiple of `bytes`: a GPU would fault.
void shim_misaligned(u64 address, u32 bytes);
inline void shim_aligned(u64 address, u32 bytes) {
    if (address % bytes) shim_misaligned(address, bytes);
}

void sync_threads();
inline u32 thread_x() { return shim_place().thread; }
inline u32 shim_lane() { return thread_x() % 32; }
inline u32 block_x() { return shim_place().block[0]; }
inline u32 block_y() { return shim_place().block[1]; }
inline u32 block_z() { return shim_place().block[2]; }
inline u32 grid_x() { return shim_place().grid[0]; }
inline void sync_warp() { shim_exchange(0, 0); }

template <class T> inline T shim_from_lane(T v, u32 lane) {
    u32 words[2] = {0, 0};
    __builtin_memcpy(words, &v, sizeof(T));
    const ShimSlots all = shim_exchange(words, (sizeof(T) + 3) / 4);
    T other;
    __builtin_memcpy(&other, all[lane % 32], sizeof(T));
    return other;
}
inline float shuffle_xor(float v, u32 mask) { return shim_from_lane(v, shim_lane() ^ mask); }
inline u32 shuffle_xor(u32 v, u32 mask) { return shim_from_lane(v, shim_lane() ^ mask); }
inline double shuffle_xor(double v, u32 mask) { return shim_from_lane(v, shim_lane() ^ mask); }
inline float shuffle(float v, u32 lane) { return shim_from_lane(v, lane); }
