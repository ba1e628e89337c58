// Surveys of logits (`ashlar_backend::survey`): the greatest of a row and what spans of it weigh, so that a sampler on the
// host needs some kilobytes and not the row.
//
// Logits become ranks: 64 bits that order as they do, of equal ones the lower id first. Blocks sort spans and keep the
// first; blocks sort what 16 or more blocks kept, until one list is left.
#include "ptx.cuh"

static const u32 THREADS = 256;
// Logits, or ranks, of a block.
static const u32 SPAN = 4096;

struct SurveyAsk {
    double temperature;
    // Its row; how many to list; its named ids among all.
    u32 row, count, first, named;
};
struct SurveySpan {
    u64 greatest;
    double sum;
    // Whether there is a NaN; whether there is a finite number.
    u32 broken, finite;
};
struct SurveyArgs {
    // Rows × width. Questions. Ids, and places for their logits. A `SurveySpan` for every question and span.
    u64 logits, asks, ids, named, spans;
    // Ranks: `lists` × `most` of every question, and where a pass writes ⌈lists · most / SPAN⌉ × `most`.
    u64 from, to;
    u32 width, lists, most, reserved;
};

DEVICE u64 rank_of(u32 id, float logit) {
    // Adding 0 makes −0 a 0.
    const u32 bits = bits_of(logit + 0.0f);
    return (u64)(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | (u32)~id;
}
DEVICE float logit_of(u64 rank) {
    const u32 ordered = (u32)(rank >> 32);
    return of_bits(ordered >> 31 ? ordered & 0x7fffffff : ~ordered);
}

// The greatest first. Bitonic: every thread exchanges eight pairs of each pass.
DEVICE void sort_ranks(u64* ranks) {
    for (u32 size = 2; size <= SPAN; size *= 2)
        for (u32 step = size / 2; step > 0; step /= 2) {
            sync_threads();
            for (u32 pair = thread_x(); pair < SPAN / 2; pair += THREADS) {
                const u32 i = pair / step * 2 * step + pair % step;
                const u64 a = ranks[i], b = ranks[i + step];
                if ((i & size ? a > b : a < b)) ranks[i] = b, ranks[i + step] = a;
            }
        }
    sync_threads();
}

DEVICE u64 greatest_rank(const u64* ranks) {
    SHARED u64 most[THREADS];
    u64 own = 0;
    for (u32 i = thread_x(); i < SPAN; i += THREADS) own = ranks[i] > own ? ranks[i] : own;
    most[thread_x()] = own;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        sync_threads();
        if (thread_x() < half && most[thread_x() + half] > most[thread_x()]) most[thread_x()] = most[thread_x() + half];
    }
    sync_threads();
    return most[0];
}

DEVICE double sum_of(double v) {
    SHARED double sums[THREADS / 32];
    for (u32 mask = 16; mask > 0; mask >>= 1) v += shuffle_xor(v, mask);
    if (thread_x() % 32 == 0) sums[thread_x() / 32] = v;
    sync_threads();
    double total = 0.0;
    for (u32 i = 0; i < THREADS / 32; i++) total += sums[i];
    return total;
}

DEVICE u32 seen_of(u32 v) {
    SHARED u32 seen[THREADS / 32];
    for (u32 mask = 16; mask > 0; mask >>= 1) v |= shuffle_xor(v, mask);
    if (thread_x() % 32 == 0) seen[thread_x() / 32] = v;
    sync_threads();
    for (u32 i = 0; i < THREADS / 32; i++) v |= seen[i];
    return v;
}

// grid: (spans, questions)
KERNEL(survey_spans, SurveyArgs, 256) {
    SHARED u64 ranks[SPAN];
    const SurveyAsk ask = ((const SurveyAsk*)a.asks)[block_y()];
    const u32 first = block_x() * SPAN, here = least(SPAN, a.width - first), thread = thread_x();
    const float* row = f32_at(a.logits) + (u64)ask.row * a.width + first;
    u32 seen = 0;
    for (u32 i = thread; i < SPAN; i += THREADS) {
        const float v = i < here ? row[i] : 0.0f;
        const u32 abs = bits_of(v) & 0x7fffffff;
        if (i < here) seen |= abs > 0x7f800000 ? 1 : abs < 0x7f800000 ? 2 : 0;
        ranks[i] = i < here ? rank_of(first + i, v) : 0;
    }
    sync_threads();
    for (u32 i = thread; i < ask.named; i += THREADS) {
        const u32 id = ((const u32*)a.ids)[ask.first + i];
        if (id < first || id >= first + here) continue;
        f32_at(a.named)[ask.first + i] = row[id - first];
        ranks[id - first] = 0;
    }
    sync_threads();
    const u64 greatest = greatest_rank(ranks);
    const double most = (double)logit_of(greatest);
    double sum = 0.0;
    // Nothing is weighed against −∞.
    if (ask.temperature > 0.0 && greatest >> 32 > 0x007fffff)
        for (u32 i = thread; i < SPAN; i += THREADS)
            if (ranks[i]) sum += exp(((double)logit_of(ranks[i]) - most) / ask.temperature);
    sum = sum_of(sum);
    seen = seen_of(seen);
    if (thread == 0) {
        SurveySpan& to = ((SurveySpan*)a.spans)[(u64)block_y() * grid_x() + block_x()];
        to.greatest = greatest, to.sum = sum, to.broken = seen & 1, to.finite = seen >> 1;
    }
    if (a.most <= 1) return;
    sort_ranks(ranks);
    u64* to = (u64*)a.to + ((u64)block_y() * grid_x() + block_x()) * a.most;
    for (u32 i = thread; i < a.most; i += THREADS) to[i] = ranks[i];
}

// grid: (blocks of SPAN ranks, questions)
KERNEL(survey_merge, SurveyArgs, 256) {
    SHARED u64 ranks[SPAN];
    const u32 all = a.lists * a.most, first = block_x() * SPAN, thread = thread_x();
    const u64* from = (const u64*)a.from + (u64)block_y() * all;
    for (u32 i = thread; i < SPAN; i += THREADS) ranks[i] = first + i < all ? from[first + i] : 0;
    sort_ranks(ranks);
    u64* to = (u64*)a.to + ((u64)block_y() * grid_x() + block_x()) * a.most;
    for (u32 i = thread; i < a.most; i += THREADS) to[i] = ranks[i];
}
