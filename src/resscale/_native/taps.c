/* Which samples of a plane make up each output pixel, and with what weights. */
#include "native.h"

#include <math.h>
#include <string.h>

/* The triangle filter as Pillow places it: one source pixel wide to each side, wider by the factor
 * of shrinking. */
static double support_of(const struct rs_axis *axis) { return axis->scale > 1 ? axis->scale : 1; }

static int most_samples(const struct rs_axis *axis) {
    return (int)fmin(2 * support_of(axis) + 4, axis->high - axis->low) / axis->ratio + 4;
}

static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t rs_taps_bytes(const struct rs_axis *axis) {
    size_t outputs = (size_t)axis->outputs, most = (size_t)most_samples(axis);
    return rounded(most * sizeof(double)) + 2 * rounded(outputs * sizeof(int)) +
           rounded(outputs * most * sizeof(uint16_t));
}

static int clamp(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}

/* Add a pixel's weight to the samples it was upsampled from. libjpeg's "fancy" upsampling takes 3/4
 * of the nearer sample and 1/4 of the farther one; past the edges it repeats those at the edges. */
static inline void spread(const struct rs_axis *axis, int pixel, double weight, int first,
                          double *sums) {
    if (axis->ratio == 1) {
        sums[pixel - first] += weight;
    } else if (axis->ratio == 2 && axis->smooth) {
        int near = pixel >> 1, far = pixel & 1 ? near + 1 : near - 1;
        sums[near - first] += 0.75 * weight;
        sums[clamp(far, 0, axis->samples - 1) - first] += 0.25 * weight;
    } else {
        sums[pixel / axis->ratio - first] += weight;
    }
}

/* Fractions of 65536. Rounding the running sum, not each weight, keeps the total exact: a flat
 * area keeps its value. */
static int quantised(const double *sums, int count, double total, uint16_t *weights) {
    double running = 0, share = 1 / total;
    long before = 0;
    int last = 0;
    for (int k = 0; k < count; k++) {
        running += sums[k] * share;
        long now = k == count - 1 ? 65536 : (long)(running * 65536 + 0.5);
        long weight = now - before;
        weights[k] = (uint16_t)(weight > 65535 ? 65535 : weight < 0 ? 0 : weight);
        before = now;
        if (weights[k])
            last = k;
    }
    return last + 1;
}

void rs_taps_fill(struct rs_taps *taps, const struct rs_axis *axis, void *memory) {
    char *place = memory;
    double support = support_of(axis), slope = 1 / support, *sums = memory;
    taps->outputs = axis->outputs;
    taps->most = most_samples(axis);
    place += rounded((size_t)taps->most * sizeof(double));
    taps->first = (int *)place;
    place += rounded((size_t)taps->outputs * sizeof(int));
    taps->count = (int *)place;
    place += rounded((size_t)taps->outputs * sizeof(int));
    taps->weights = (uint16_t *)place;
    taps->low = axis->samples;
    taps->high = taps->widest = 0;
    memset(taps->weights, 0, (size_t)taps->outputs * (size_t)taps->most * sizeof(uint16_t));
    for (int o = 0; o < axis->outputs; o++) {
        double centre = axis->start + (o + 0.5) * axis->scale, total = 0;
        int from = clamp((int)(centre - support + 0.5), axis->low, axis->high - 1);
        int to = clamp((int)(centre + support + 0.5), from + 1, axis->high);
        int first = clamp(from / axis->ratio - 1, 0, axis->samples - 1);
        int end = clamp((to - 1) / axis->ratio + 2, first + 1, axis->samples);
        uint16_t *weights = taps->weights + (size_t)o * (size_t)taps->most;
        for (int k = 0; k < end - first; k++)
            sums[k] = 0;
        for (int pixel = from; pixel < to; pixel++) {
            double weight = 1 - fabs(pixel + 0.5 - centre) * slope;
            if (weight > 0) {
                spread(axis, pixel, weight, first, sums);
                total += weight;
            }
        }
        if (total <= 0) { /* rounding at the very edge: the nearest pixel alone */
            spread(axis, from, 1, first, sums);
            total = 1;
        }
        int skip = 0;
        while (sums[skip] * 65536 < 0.5 * total && skip < end - first - 1)
            skip++; /* most often the sample before the first one counts nothing */
        first = taps->first[o] = first + skip;
        int count = taps->count[o] = quantised(sums + skip, end - first, total, weights);
        taps->low = first < taps->low ? first : taps->low;
        taps->high = first + count > taps->high ? first + count : taps->high;
        taps->widest = count > taps->widest ? count : taps->widest;
    }
}
