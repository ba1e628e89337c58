// What works on rows of activations: rounding, norms, rotations, gates, copies, outliers, lanes.
#include "args.cuh"
#include "rounding.cuh"

static const u32 THREADS = 256;

// The sum over a block; every thread gets it.
DEVICE float block_sum(float v) {
    SHARED float sums[THREADS / 32];
    v = warp_sum(v);
    sync_threads();
    if (thread_x() % 32 == 0) sums[thread_x() / 32] = v;
    sync_threads();
    float total = 0.0f;
    for (u32 i = 0; i < THREADS / 32; i++) total += sums[i];
    return total;
}

struct RoundArgs {
    u64 x, codes, scales, count;
};
// `count` values, a multiple of 32. grid: 256 values each
KERNEL(round_rows, RoundArgs, 256) {
    const u64 index = (u64)block_x() * THREADS + thread_x();
    if (index < a.count) round_warp(f32_at(a.x)[index], a.codes, a.scales, index);
}

struct NormArgs {
    u64 x, weight, out, codes, scales;
    u32 width;
    float eps;
};
// out = x · w / sqrt(mean(x²) + eps), and what rounding keeps of it where `codes` is given. grid: rows
KERNEL(rms_norm, NormArgs, 256) {
    const u64 row = (u64)block_x() * a.width;
    const float *x = f32_at(a.x) + row, *w = f32_at(a.weight);
    float sum = 0.0f;
    for (u32 i = thread_x(); i < a.width; i += THREADS) sum += x[i] * x[i];
    const float inverse = 1.0f / sqrtf(block_sum(sum) / (float)a.width + a.eps);
    for (u32 i = thread_x(); i < a.width; i += THREADS) {
        const float v = x[i] * inverse * w[i];
        f32_at(a.out)[row + i] = v;
        if (a.codes) round_warp(v, a.codes, a.scales, row + i);
    }
}

struct AnglesArgs {
    u64 frequencies, positions, out;
    double multiplier;
    u32 pairs, reserved;
};
// Cosines, then sines, of every row's position. grid: rows
KERNEL(angles, AnglesArgs, 256) {
    float* out = f32_at(a.out) + (u64)block_x() * 2 * a.pairs;
    const double position = (double)((const u32*)a.positions)[block_x()];
    for (u32 i = thread_x(); i < a.pairs; i += THREADS) {
        const double angle = position * ((const double*)a.frequencies)[i];
        out[i] = (float)(cos(angle) * a.multiplier);
        out[a.pairs + i] = (float)(sin(angle) * a.multiplier);
    }
}

struct HeadsArgs {
    // Weights of the norm, or 0 for ones; angles, or 0 for no rotation.
    u64 x, weight, angles;
    u32 rows, heads, dim;
    // The norm is over the first `normed` values (0: none), the rotation of the last `turned`.
    u32 normed, turned;
    // Pairs are (i, i + turned / 2), not (2i, 2i + 1).
    u32 halves, inverse;
    float eps;
};
// grid: 8 heads each
KERNEL(heads, HeadsArgs, 256) {
    const u32 lane = thread_x() % 32, index = block_x() * 8 + thread_x() / 32;
    if (index >= a.rows * a.heads) return;
    float* x = f32_at(a.x) + (u64)index * a.dim;
    if (a.normed > 0) {
        float sum = 0.0f;
        for (u32 i = lane; i < a.normed; i += 32) sum += x[i] * x[i];
        const float inverse = 1.0f / sqrtf(warp_sum(sum) / (float)a.normed + a.eps);
        for (u32 i = lane; i < a.normed; i += 32) x[i] = x[i] * inverse * (a.weight ? f32_at(a.weight)[i] : 1.0f);
        sync_warp();
    }
    if (a.angles == 0) return;
    const u32 pairs = a.turned / 2;
    const float* angle = f32_at(a.angles) + (u64)(index / a.heads) * a.turned;
    x += a.dim - a.turned;
    for (u32 i = lane; i < pairs; i += 32) {
        const u32 first = a.halves ? i : 2 * i, second = a.halves ? i + pairs : 2 * i + 1;
        const float u = x[first], v = x[second], c = angle[i], s = a.inverse ? -angle[pairs + i] : angle[pairs + i];
        x[first] = u * c - v * s;
        x[second] = v * c + u * s;
    }
}

struct GatedArgs {
    u64 gate, up, out, codes, scales;
    // Of pairs: the expert of every row, and addresses of its biases (0 for none).
    u64 chosen, gate_bias, up_bias;
    // The rows to combine, 0xffffffff for none; 0 for all.
    u64 which;
    u32 n, activation;
    float limit, alpha;
};
// out = activation(gate, up), and what rounding keeps of it where `codes` is given. grid: (256 columns, rows)
KERNEL(gated, GatedArgs, 256) {
    const u32 column = block_x() * THREADS + thread_x();
    const u32 row = listed(a.which, block_y());
    if (column >= a.n || row == NONE) return;
    const u64 index = (u64)row * a.n + column;
    float g = f32_at(a.gate)[index], u = f32_at(a.up)[index];
    if (a.gate_bias) {
        const i32 expert = ((const i32*)a.chosen)[row];
        g += f32_at(((const u64*)a.gate_bias)[expert])[column];
        u += f32_at(((const u64*)a.up_bias)[expert])[column];
    }
    if (a.activation > 0) {
        g = fminf(g, a.limit);
        u = fminf(fmaxf(u, -fabsf(a.limit)), fabsf(a.limit));
    }
    const float swish = g / (1.0f + expf(-a.alpha * g));
    const float v = swish * (a.activation == 2 ? u + 1.0f : u);
    if (a.out) f32_at(a.out)[index] = v;
    if (a.codes) round_warp(v, a.codes, a.scales, index);
}

struct RowsArgs {
    // `index`: the row of x for every row of out; 0 for the same.
    u64 x, index, out;
    u32 width, times;
};
// out = rows of x, side by side `times` times. grid: (256 columns, rows)
KERNEL(copy_rows, RowsArgs, 256) {
    const u32 column = block_x() * THREADS + thread_x(), wide = a.width * a.times;
    if (column >= wide) return;
    const u64 row = a.index ? ((const u32*)a.index)[block_y()] : block_y();
    f32_at(a.out)[(u64)block_y() * wide + column] = f32_at(a.x)[row * a.width + column % a.width];
}

struct SigmoidArgs {
    u64 x, weight, y;
    u32 k, n;
};
// y = y · sigmoid(x · w). grid: rows
KERNEL(sigmoid_gate, SigmoidArgs, 256) {
    const float* x = f32_at(a.x) + (u64)block_x() * a.k;
    float sum = 0.0f;
    for (u32 i = thread_x(); i < a.k; i += THREADS) sum += x[i] * f32_at(a.weight)[i];
    const float factor = 1.0f / (1.0f + expf(-block_sum(sum)));
    float* y = f32_at(a.y) + (u64)block_x() * a.n;
    for (u32 i = thread_x(); i < a.n; i += THREADS) y[i] *= factor;
}

// grid: (8 outputs each, rows or pairs)
KERNEL(add_outliers, OutlierArgs, 256) {
    const u32 lane = thread_x() % 32, output = block_x() * 8 + thread_x() / 32, at = listed(a.which, block_y());
    if (at == NONE) return;
    const u32 id = a.chosen ? ((const u32*)a.ids)[((const i32*)a.chosen)[at]] : a.weight;
    const Weight w = ((const Weight*)a.weights)[id];
    if (output >= a.n || w.slots == 0) return;
    const u64 row = at / a.per_row * (u64)a.k;
    float sum = 0.0f;
    for (u32 s = lane; s < w.slots; s += 32) {
        const u32 slot = load4(w.outliers + 4 * ((u64)output * w.slots + s)), column = slot & 0xffff;
        const float x = w.rounded ? (float)((const i8*)a.codes)[row + column] * f32_at(a.scales)[(row + column) / 32]
                                  : f32_at(a.x)[row + column];
        sum += f16_to_f32((u16)(slot >> 16)) * x;
    }
    sum = warp_sum(sum);
    if (lane == 0) f32_at(a.out)[(u64)at * a.n + output] += sum;
}

struct HyperMixArgs {
    // `products`: rows × count, x · mixᵀ. `coefficients`: 0 where none are wanted.
    u64 x, products, base, scale, coefficients, out;
    u32 lanes, width, count, iterations;
    float norm_eps, eps;
};
// grid: rows
KERNEL(hyper_mix, HyperMixArgs, 256) {
    // lanes ≤ 8
    SHARED double c[80], m[64], sums[8];
    const u32 n = a.lanes, thread = thread_x();
    const float* x = f32_at(a.x) + (u64)block_x() * n * a.width;
    float sum = 0.0f;
    for (u32 i = thread; i < n * a.width; i += THREADS) sum += x[i] * x[i];
    const double inverse = 1.0 / sqrt((double)block_sum(sum) / (double)(n * a.width) + (double)a.norm_eps);
    if (thread < a.count) {
        const u32 kind = thread / n < 2 ? thread / n : 2;
        c[thread] = (double)f32_at(a.products)[(u64)block_x() * a.count + thread] * inverse * (double)f32_at(a.scale)[kind] +
                    (double)f32_at(a.base)[thread];
    }
    sync_threads();
    const double eps = (double)a.eps;
    for (u32 i = thread; i < a.width; i += THREADS) {
        double v = 0.0;
        for (u32 j = 0; j < n; j++) v += (1.0 / (1.0 + exp(-c[j])) + eps) * (double)x[j * a.width + i];
        f32_at(a.out)[(u64)block_x() * a.width + i] = (float)v;
    }
    if (a.coefficients == 0) return;
    float* out = f32_at(a.coefficients) + (u64)block_x() * n * (n + 1);
    const u32 j = thread / n, k = thread % n;
    if (thread < n) {
        out[thread] = (float)(2.0 / (1.0 + exp(-c[n + thread])));
        double most = c[2 * n + thread * n], total = 0.0;
        for (u32 i = 1; i < n; i++) most = fmax(most, c[2 * n + thread * n + i]);
        for (u32 i = 0; i < n; i++) total += exp(c[2 * n + thread * n + i] - most);
        for (u32 i = 0; i < n; i++) m[thread * n + i] = exp(c[2 * n + thread * n + i] - most) / total + eps;
    }
    for (u32 step = 0; step < 2 * a.iterations; step++) {
        // Rows in even steps but the first, columns in odd ones.
        const bool rows = step % 2 == 0;
        if (step == 0) continue;
        sync_threads();
        if (thread < n) {
            double total = eps;
            for (u32 i = 0; i < n; i++) total += rows ? m[thread * n + i] : m[i * n + thread];
            sums[thread] = total;
        }
        sync_threads();
        if (thread < n * n) m[thread] /= sums[rows ? j : k];
    }
    sync_threads();
    if (thread < n * n) out[n + thread] = (float)m[thread];
}

struct HyperAddArgs {
    u64 x, z, coefficients;
    u32 lanes, width;
};
// Lane k becomes a_k · z + Σ_j M(j, k) · lane j. grid: (256 columns, rows)
KERNEL(hyper_add, HyperAddArgs, 256) {
    const u32 i = block_x() * THREADS + thread_x(), n = a.lanes;
    if (i >= a.width) return;
    const float* c = f32_at(a.coefficients) + (u64)block_y() * n * (n + 1);
    float* x = f32_at(a.x) + (u64)block_y() * n * a.width;
    const double z = (double)f32_at(a.z)[(u64)block_y() * a.width + i];
    double old[8];
    for (u32 j = 0; j < n; j++) old[j] = (double)x[j * a.width + i];
    for (u32 k = 0; k < n; k++) {
        double v = 0.0;
        for (u32 j = 0; j < n; j++) v += (double)c[n + j * n + k] * old[j];
        x[k * a.width + i] = (float)((double)c[k] * z + v);
    }
}
