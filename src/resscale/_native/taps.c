/* Which samples of a plane make up each output pixel, and with what weights. */
#include "native.h"

#include <math.h>
#include <string.h>

/* The triangle filter as Pillow places it: one source pixel wide to each side, wider by the factor
 * of shrinking. Taps are those of the full-size picture. */
static double support_of(const struct rs_axis *axis) { return axis->scale > 1 ? axis->scale : 1; }

static int most_pixels(const struct rs_axis *axis) {
    double most = 2 * ceil(support_of(axis)) + 2;
    return most < axis->high - axis->low ? (int)most : axis->high - axis->low;
}

static int most_samples(const struct rs_axis *axis) {
    return most_pixels(axis) / axis->ratio + 4;
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

/* Add a full-size pixel's weight to the samples it was upsampled from. libjpeg's "fancy" upsampling
 * takes 3/4 of the nearer sample and 1/4 of the farther one, and repeats those at the edges. */
static void spread(const struct rs_axis *axis, int pixel, double weight, int first, double *sums) {
    int near = clamp(pixel / axis->ratio, 0, axis->samples - 1);
    if (axis->ratio == 2 && axis->smooth) {
        int far = clamp(pixel % 2 ? near + 1 : near - 1, 0, axis->samples - 1);
        sums[near - first] += 0.75 * weight;
        sums[far - first] += 0.25 * weight;
    } else {
        sums[near - first] += weight;
    }
}

/* Fractions of 65536. Rounding the running sum, not each weight, keeps the total exact: a flat
 * area keeps its value. */
static int quantised(const double *sums, int count, double total, uint16_t *weights) {
    double running = 0;
    long before = 0;
    int last = 0;
    for (int k = 0; k < count; k++) {
        running += sums[k] / total;
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
    double support = support_of(axis), *sums = memory;
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
            double weight = 1 - fabs(pixel + 0.5 - centre) / support;
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
        taps->first[o] = first + skip;
        taps->count[o] = quantised(sums + skip, end - first - skip, total, weights);
        if (first + skip < taps->low)
            taps->low = first + skip;
        if (first + skip + taps->count[o] > taps->high)
            taps->high = first + skip + taps->count[o];
        if (taps->count[o] > taps->widest)
            taps->widest = taps->count[o];
    }
}
