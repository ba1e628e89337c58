// Mixtures of experts: who goes where, pairs grouped by expert, and what their products add up to. A pair is a
// (token, slot): token · top_k + slot.
#include "ptx.cuh"

struct RouteArgs {
    // Logits, tokens × experts. Bias of ranks, or 0. Experts named by token id ([vocab, top_k] f32) and ids, or 0.
    u64 logits, bias, table, ids;
    u64 chosen, weights;
    // Memory of the host that gets both too, and a flag for every token; 0 if nobody there waits.
    u64 told, told_weights, flags;
    u32 experts, top_k, normalize, scores;
    u32 groups, kept, ranked_by;
    float scale;
};

enum Scores { SOFTMAX = 0, SIGMOID = 1, SQRT_SOFTPLUS = 2 };
static const u32 MOST_EXPERTS = 1024;

// `ashlar_backend::route`, a warp per token, in f64. grid: tokens
KERNEL(route, RouteArgs, 32) {
    SHARED double score[MOST_EXPERTS], rank[MOST_EXPERTS];
    SHARED u8 out_of_play[MOST_EXPERTS];
    const u32 lane = thread_x(), token = block_x(), experts = a.experts;
    const float* logits = f32_at(a.logits) + (u64)token * experts;
    float most = logits[0];
    for (u32 e = lane; e < experts; e += 32) most = fmaxf(most, logits[e]);
    most = warp_max(most);
    double total = 0.0;
    for (u32 e = lane; e < experts; e += 32) {
        const double l = (double)logits[e];
        double s;
        if (a.scores == SOFTMAX) s = exp(l - (double)most);
        else if (a.scores == SIGMOID) s = 1.0 / (1.0 + exp(-l));
        else s = sqrt(fmax(l, 0.0) + log1p(exp(-fabs(l))));
        score[e] = s;
        total += s;
    }
    for (u32 mask = 16; mask > 0; mask >>= 1) total += shuffle_xor(total, mask);
    for (u32 e = lane; e < experts; e += 32) {
        if (a.scores == SOFTMAX) score[e] /= total;
        rank[e] = a.bias ? score[e] + (double)f32_at(a.bias)[e] : a.scores == SOFTMAX ? (double)logits[e] : score[e];
        out_of_play[e] = 0;
    }
    sync_warp();
    i32* chosen = (i32*)a.chosen + (u64)token * a.top_k;
    if (a.table) {
        const float* names = f32_at(a.table) + (u64)((const u32*)a.ids)[token] * a.top_k;
        for (u32 i = lane; i < a.top_k; i += 32) chosen[i] = (i32)names[i];
    } else {
        if (a.groups > 1) {
            SHARED double value[MOST_EXPERTS];
            const u32 size = experts / a.groups;
            // Probabilities, unlike logits, can be added.
            const double* by = a.ranked_by > 1 && !a.bias ? score : rank;
            for (u32 group = lane; group < a.groups; group += 32) {
                double sum = 0.0;
                for (u32 i = 0; i < size; i++) {
                    // How many of the group are better: ties go to the lower number.
                    u32 better = 0;
                    for (u32 j = 0; j < size; j++) {
                        const double own = by[group * size + i], other = by[group * size + j];
                        better += other > own || (other == own && j < i);
                    }
                    if (better < a.ranked_by) sum += by[group * size + i];
                }
                value[group] = sum;
            }
            sync_warp();
            for (u32 group = lane; group < a.groups; group += 32) {
                u32 better = 0;
                for (u32 other = 0; other < a.groups; other++)
                    better += value[other] > value[group] || (value[other] == value[group] && other < group);
                if (better >= a.kept)
                    for (u32 i = 0; i < size; i++) out_of_play[group * size + i] = 1;
            }
            sync_warp();
        }
        for (u32 slot = 0; slot < a.top_k; slot++) {
            double best = 0.0;
            u32 at = experts;
            for (u32 e = lane; e < experts; e += 32)
                if (!out_of_play[e] && (at == experts || rank[e] > best)) best = rank[e], at = e;
            for (u32 mask = 16; mask > 0; mask >>= 1) {
                const double other = shuffle_xor(best, mask);
                const u32 other_at = shuffle_xor(at, mask);
                if (other_at < experts && (at == experts || other > best || (other == best && other_at < at)))
                    best = other, at = other_at;
            }
            // Logits that are not numbers must not lead outside the table of experts.
            if (at == experts) at = 0;
            if (lane == 0) {
                out_of_play[at] = 1;
                chosen[slot] = (i32)at;
            }
            sync_warp();
        }
    }
    sync_warp();
    if (lane == 0) {
        double sum = 0.0;
        for (u32 i = 0; i < a.top_k; i++) sum += score[chosen[i]];
        const double divisor = a.normalize ? sum + 1e-20 : 1.0;
        float* weights = f32_at(a.weights) + (u64)token * a.top_k;
        for (u32 i = 0; i < a.top_k; i++) weights[i] = (float)(score[chosen[i]] / divisor * (double)a.scale);
        if (a.flags) {
            for (u32 i = 0; i < a.top_k; i++) {
                ((i32*)a.told)[token * a.top_k + i] = chosen[i];
                f32_at(a.told_weights)[token * a.top_k + i] = weights[i];
            }
            post(a.flags + 4 * (u64)token);
        }
    }
}

struct SortArgs {
    u64 chosen, order, tiles, count;
    u32 pairs, experts, rows, reserved;
};
// Pairs expert by expert, ascending within one, and tiles of at most `rows` of them. One block.
KERNEL(group_pairs, SortArgs, 256) {
    SHARED u32 counts[MOST_EXPERTS], starts[MOST_EXPERTS], first_tile[MOST_EXPERTS];
    const i32* chosen = (const i32*)a.chosen;
    for (u32 e = thread_x(); e < a.experts; e += 256) {
        u32 count = 0;
        for (u32 i = 0; i < a.pairs; i++) count += chosen[i] == (i32)e;
        counts[e] = count;
    }
    sync_threads();
    if (thread_x() == 0) {
        u32 start = 0, tile = 0;
        for (u32 e = 0; e < a.experts; e++) {
            starts[e] = start;
            first_tile[e] = tile;
            start += counts[e];
            tile += parts_of(counts[e], a.rows);
        }
        *(u32*)a.count = tile;
    }
    sync_threads();
    for (u32 e = thread_x(); e < a.experts; e += 256) {
        u32 next = starts[e];
        for (u32 i = 0; i < a.pairs; i++)
            if (chosen[i] == (i32)e) ((u32*)a.order)[next++] = i;
        for (u32 done = 0, tile = first_tile[e]; done < counts[e]; done += a.rows, tile++) {
            u32* t = (u32*)a.tiles + 3 * tile;
            t[0] = e;
            t[1] = starts[e] + done;
            t[2] = least(a.rows, counts[e] - done);
        }
    }
}

struct CombineArgs {
    // `products`: pairs × width. `bias`: an address per expert, or 0.
    u64 products, weights, chosen, bias, out;
    // Products that came from elsewhere, with their biases, and of every pair its row there, 0xffffffff for none; or 0.
    u64 given, places;
    u32 top_k, width;
};
// out += Σ over a token's pairs of weight · (product + bias), best first. grid: (256 columns, tokens)
KERNEL(combine, CombineArgs, 256) {
    const u32 column = block_x() * 256 + thread_x();
    if (column >= a.width) return;
    float sum = 0.0f;
    for (u32 i = 0; i < a.top_k; i++) {
        const u64 pair = (u64)block_y() * a.top_k + i;
        const u32 place = a.places ? ((const u32*)a.places)[pair] : ~0u;
        float v = place == ~0u ? f32_at(a.products)[pair * a.width + column] : f32_at(a.given)[(u64)place * a.width + column];
        if (a.bias && place == ~0u) v += f32_at(((const u64*)a.bias)[((const i32*)a.chosen)[pair]])[column];
        sum += f32_at(a.weights)[pair] * v;
    }
    f32_at(a.out)[(u64)block_y() * a.width + column] += sum;
}
