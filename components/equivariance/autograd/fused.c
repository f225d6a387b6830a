/* One pass over the maps of a step's pairs, and one over their gradients, in place of some ten operations each.
 *
 * Legend: P pairs, C channels in fields of t, N = H W pixels of a map. Pixel i of a turned map comes from pixel
 * source(i) = first + row * by_row + column * by_column of the map, channel h of a turned field from channel
 * sources[h]. Maps are (P, C, N) or, channels last, (P, N, C); float32. See fused.py for what calls this and
 * tests/components/equivariance/autograd/test_fused.py for what it must agree with. */

#include <math.h>
#include <stdint.h>

typedef int64_t i64;

/* Where the compiler and the system can, one version for each kind of processor, chosen when this is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define EVERY_PROCESSOR
#endif

enum { LONGEST_FIELD = 8, LONGEST_PART = 1024, FEWEST_ENTRIES = 1 << 16 };
enum { RELATIVE, NONE, PAPER }; /* the size of a residual */

typedef struct {
    i64 pairs, channels, height, width;
    i64 first, by_row, by_column; /* source(i), in pixels */
    i64 order;                    /* t */
    i64 sources[LONGEST_FIELD];
    i64 is_channels_last;
} Geometry;

/* The sum of the squares of a run of entries, in float over parts of it and in double over the parts. */
static inline double sum_of_squares(const float *entries, i64 number) {
    double sum = 0;
    for (i64 start = 0; start < number; start += LONGEST_PART) {
        const i64 end = start + LONGEST_PART < number ? start + LONGEST_PART : number;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (i64 i = start; i < end; i++) part += entries[i] * entries[i];
        sum += part;
    }
    return sum;
}

/* What one call is to do. */
typedef struct {
    const Geometry *g;
    const float *maps; /* originals, then transformed */
    float *residual;
    i64 size;
    double epsilon;
    float *values, *norms; /* of v_p and of the residual, P each */
    float *total;          /* as maps */
    const float *scales, *limits;
    float *arriving;
} Work;

EVERY_PROCESSOR
static void compare(const Work *work, i64 p) {
    const Geometry *g = work->g;
    const i64 C = g->channels, H = g->height, W = g->width, N = H * W, t = g->order, entries = C * N;
    const float *restrict f = work->maps + p * entries, *restrict y = f + g->pairs * entries;
    float *restrict d = work->residual + p * entries;
    double of_residual = 0, of_original = 0, of_copy = 0;
    /* What was just written or read is summed while it is near: a row of pixels, or the plane of a channel. */
    const i64 parts = g->is_channels_last ? H : C, part = entries / parts;
    for (i64 number = 0; number < parts; number++) {
        const i64 begin = number * part;
        if (g->is_channels_last) {
            for (i64 column = 0; column < W; column++) {
                const float *from = f + (g->first + number * g->by_row + column * g->by_column) * C;
                const float *to = y + begin + column * C;
                float *out = d + begin + column * C;
                if (t == 4) {
                    const i64 s0 = g->sources[0], s1 = g->sources[1], s2 = g->sources[2], s3 = g->sources[3];
                    for (i64 k = 0; k < C; k += 4) {
                        out[k] = to[k] - from[k + s0];
                        out[k + 1] = to[k + 1] - from[k + s1];
                        out[k + 2] = to[k + 2] - from[k + s2];
                        out[k + 3] = to[k + 3] - from[k + s3];
                    }
                } else {
                    for (i64 k = 0; k < C; k += t)
                        for (i64 h = 0; h < t; h++) out[k + h] = to[k + h] - from[k + g->sources[h]];
                }
            }
        } else {
            const float *plane = f + (number - number % t + g->sources[number % t]) * N + g->first;
            for (i64 row = 0; row < H; row++)
                for (i64 i = 0; i < W; i++)
                    d[begin + row * W + i] = y[begin + row * W + i] - plane[row * g->by_row + i * g->by_column];
        }
        of_residual += sum_of_squares(d + begin, part);
        of_original += sum_of_squares(f + begin, part);
        of_copy += sum_of_squares(y + begin, part);
    }
    const double scale = (of_original + of_copy) / (double)(2 * entries) + work->epsilon;
    const double v = 1.0 / (double)(g->pairs * entries) / (work->size == RELATIVE ? scale : 1);
    work->values[p] = (float)(work->size == PAPER ? 1 : v);
    work->norms[p] = (float)sqrt(of_residual);
}

EVERY_PROCESSOR
static void add(const Work *work, i64 p) {
    const Geometry *g = work->g;
    const i64 C = g->channels, H = g->height, W = g->width, N = H * W, t = g->order, entries = C * N;
    const float *restrict d = work->residual + p * entries;
    float *restrict at_original = work->total + p * entries, *restrict at_copy = at_original + g->pairs * entries;
    float s = work->scales[p];
    if (work->arriving)
        work->arriving[p] = (float)sqrt(sum_of_squares(at_original, entries) + sum_of_squares(at_copy, entries));
    if (work->limits && !(work->limits[p] * work->arriving[p] >= 1)) s *= work->limits[p] * work->arriving[p];
    if (g->is_channels_last) {
        for (i64 row = 0; row < H; row++)
            for (i64 column = 0; column < W; column++) {
                const float *from = d + (row * W + column) * C;
                float *to = at_copy + (row * W + column) * C;
                float *back = at_original + (g->first + row * g->by_row + column * g->by_column) * C;
                if (t == 4) {
                    const i64 s0 = g->sources[0], s1 = g->sources[1], s2 = g->sources[2], s3 = g->sources[3];
                    for (i64 k = 0; k < C; k += 4) {
                        const float d0 = s * from[k], d1 = s * from[k + 1];
                        const float d2 = s * from[k + 2], d3 = s * from[k + 3];
                        to[k] += d0, to[k + 1] += d1, to[k + 2] += d2, to[k + 3] += d3;
                        back[k + s0] -= d0, back[k + s1] -= d1, back[k + s2] -= d2, back[k + s3] -= d3;
                    }
                } else {
                    for (i64 k = 0; k < C; k += t)
                        for (i64 h = 0; h < t; h++) {
                            const float x = s * from[k + h];
                            to[k + h] += x;
                            back[k + g->sources[h]] -= x;
                        }
                }
            }
    } else {
        for (i64 k = 0; k < C; k++) {
            float *plane = at_original + (k - k % t + g->sources[k % t]) * N + g->first;
            for (i64 row = 0; row < H; row++) {
                const i64 line = k * N + row * W, step = g->by_column;
                float *back = plane + row * g->by_row;
                for (i64 i = 0; i < W; i++) {
                    const float x = s * d[line + i];
                    at_copy[line + i] += x;
                    back[i * step] -= x;
                }
            }
        }
    }
}

/* Shares the pairs out among the threads that torch's own operations run on, where there is enough to do. */
static void share_out(void (*part)(const Work *, i64), const Work *work, i64 threads) {
    const Geometry *g = work->g;
    if (g->pairs * g->channels * g->height * g->width < FEWEST_ENTRIES) threads = 1;
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (i64 p = 0; p < g->pairs; p++) part(work, p);
}

/* residual = transformed - turned originals, maps being both. settled: the penalty's value, then P coefficients 2 v_p, then the
 * P norms of its gradient; the formulas are those of comparison.compute_values. */
void eqreg_residual(const Geometry *g, const float *maps, float *residual, i64 size, double epsilon, float *settled,
                    i64 threads) {
    float *values = settled + 1, *norms = values + g->pairs;
    Work work = {.g = g, .maps = maps, .residual = residual, .size = size, .epsilon = epsilon};
    work.values = values, work.norms = norms;
    share_out(compare, &work, threads);
    double value = 0;
    for (i64 p = 0; p < g->pairs; p++) value += (double)values[p] * norms[p] * norms[p];
    if (size == PAPER) value = sqrt(value); /* whose gradient is taken as 0 at 0 */
    for (i64 p = 0; p < g->pairs; p++) {
        values[p] = (float)(size == PAPER ? (value > 0 ? 1 / value : 0) : 2 * (double)values[p]);
        norms[p] = (float)(values[p] * sqrt(2) * norms[p]);
    }
    settled[0] = (float)value;
}

/* At the transformed images += s residual, at the originals -= s (residual turned back), total being both, s_p = scales[p]
 * min(1, limits[p] arriving[p]), arriving[p] being the norm of both before. limits may be NULL: no cap; both may be: no
 * norms either. */
void eqreg_add(const Geometry *g, float *total, const float *residual, const float *scales, const float *limits,
               float *arriving, i64 threads) {
    Work work = {.g = g, .residual = (float *)residual, .total = total, .scales = scales};
    work.limits = limits, work.arriving = arriving;
    share_out(add, &work, threads);
}
