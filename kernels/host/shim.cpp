// The scheduler of the host shim: fibers in a ring. A fiber that waits hands on to the next one; a whole round in which
// nothing got further means that the kernel's threads disagree about a barrier, which ends the process.
#include "base.cuh"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" void ashlar_switch(void** save, void* load);

// Callee-saved registers go to the stack, then the stack is exchanged.
#if defined(__x86_64__)
asm(R"(
.text
.globl ashlar_switch
.type ashlar_switch, @function
ashlar_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ashlar_switch, .-ashlar_switch
)");
static void* prepare(char* stack, size_t bytes, void (*entry)()) {
    // The function starts as if called: the slot of its return address lies at a multiple of 16.
    void** top = (void**)((u64)(stack + bytes - 64) & ~63ull);
    *top = (void*)entry;
    return memset(top - 6, 0, 6 * sizeof(void*));
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl ashlar_switch
.type ashlar_switch, %function
ashlar_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size ashlar_switch, .-ashlar_switch
)");
static void* prepare(char* stack, size_t bytes, void (*entry)()) {
    char* frame = (char*)((u64)(stack + bytes - 64) & ~63ull) - 160;
    memset(frame, 0, 160);
    memcpy(frame + 88, &entry, sizeof entry);
    return frame;
}
#else
#error "the host shim switches stacks on x86-64 and aarch64 only"
#endif

typedef void (*Kernel)(const void*);

static const size_t STACK = 64 << 10;
static const u32 MOST_THREADS = 1024;

struct Warp {
    u32 generation, arrived, size;
    u32 slots[2][32][8];
};

struct Block {
    const char* name;
    Kernel kernel;
    const void* args;
    ShimPlace place;
    u32 threads, live, current, arrived, generation, idle;
    void* main;
    void* stack_of[MOST_THREADS];
    u32 next[MOST_THREADS], previous[MOST_THREADS];
    char* stacks;
    void* dynamic;
    size_t dynamic_bytes;
    Warp warps[MOST_THREADS / 32];
};

static thread_local Block* block;

const ShimPlace& shim_place() { return block->place; }
void* shim_dynamic() { return block->dynamic; }

static void give_up(const char* what) {
    fprintf(stderr, "host shim: kernel %s, block %u %u %u, thread %u: %s\n", block->name, block->place.block[0],
            block->place.block[1], block->place.block[2], block->place.thread, what);
    abort();
}

void shim_misaligned(u64 address, u32 bytes) {
    char what[96];
    snprintf(what, sizeof what, "a load of %u bytes at %llx, which is no multiple of that", bytes, address);
    give_up(what);
}

static void resume(u32 thread, void** save) {
    block->current = block->place.thread = thread;
    ashlar_switch(save, block->stack_of[thread]);
}

static void yield() {
    Block& b = *block;
    if (++b.idle > 4 * b.live + 8) give_up("waits for a barrier that others have left out");
    const u32 mine = b.current;
    if (b.next[mine] != mine) resume(b.next[mine], &b.stack_of[mine]);
}

void sync_threads() {
    Block& b = *block;
    const u32 mine = b.generation;
    if (++b.arrived == b.live) {
        b.arrived = b.idle = 0;
        b.generation++;
    }
    while (b.generation == mine) yield();
}

ShimSlots shim_exchange(const u32* words, u32 count) {
    Block& b = *block;
    const u32 thread = b.current;
    Warp& w = b.warps[thread / 32];
    const u32 mine = w.generation;
    for (u32 i = 0; i < count; i++) w.slots[mine % 2][thread % 32][i] = words[i];
    if (++w.arrived == w.size) {
        w.arrived = b.idle = 0;
        w.generation++;
    }
    while (w.generation == mine) yield();
    return w.slots[mine % 2];
}

static void fiber() {
    Block& b = *block;
    b.kernel(b.args);
    const u32 mine = b.current;
    b.idle = 0;
    b.live--;
    b.next[b.previous[mine]] = b.next[mine];
    b.previous[b.next[mine]] = b.previous[mine];
    // Threads that have returned count as arrived, as on a GPU.
    if (b.live > 0 && b.arrived == b.live) {
        b.arrived = 0;
        b.generation++;
    }
    if (b.live == 0) ashlar_switch(&b.stack_of[mine], b.main);
    resume(b.next[mine], &b.stack_of[mine]);
}

// Runs a kernel to its end. With `reversed`, blocks and threads take turns the other way round: a missing barrier shows.
extern "C" int ashlar_launch(const char* name, Kernel kernel, const void* args, const u32 grid[3], u32 threads, u32 shared,
                             u32 reversed) {
    if (threads == 0 || threads > MOST_THREADS || threads % 32) return 1;
    if (!block) {
        block = (Block*)calloc(1, sizeof(Block));
        block->stacks = (char*)malloc(STACK * MOST_THREADS);
    }
    Block& b = *block;
    if (b.dynamic_bytes < shared) {
        free(b.dynamic);
        if (posix_memalign(&b.dynamic, 64, shared)) return 2;
        b.dynamic_bytes = shared;
    }
    // What a kernel reads before it has written is not a number.
    if (shared) memset(b.dynamic, 0xff, shared);
    b.name = name;
    b.kernel = kernel;
    b.args = args;
    b.threads = threads;
    memcpy(b.place.grid, grid, sizeof b.place.grid);
    const u64 blocks = (u64)grid[0] * grid[1] * grid[2];
    for (u64 i = 0; i < blocks; i++) {
        const u64 at = reversed ? blocks - 1 - i : i;
        b.place.block[0] = (u32)(at % grid[0]);
        b.place.block[1] = (u32)(at / grid[0] % grid[1]);
        b.place.block[2] = (u32)(at / grid[0] / grid[1]);
        b.live = threads;
        b.arrived = b.idle = 0;
        for (u32 t = 0; t < threads; t++) {
            b.stack_of[t] = prepare(b.stacks + STACK * t, STACK, fiber);
            b.next[t] = (t + (reversed ? threads - 1 : 1)) % threads;
            b.previous[t] = (t + (reversed ? 1 : threads - 1)) % threads;
        }
        for (u32 w = 0; w < threads / 32; w++) {
            b.warps[w].arrived = 0;
            b.warps[w].size = 32;
        }
        resume(reversed ? threads - 1 : 0, &b.main);
    }
    return 0;
}
