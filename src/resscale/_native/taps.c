/* Which samples of a plane make up each output pixel, and with what weights. The loops take as many
 * turns for each output: to guess wrongly would cost more than the turns. */
#include "native.h"

#include <math.h>
#include <string.h>

static int least(int one, int other) { return one < other ? one : other; }
static int clamp(int n, int low, int high) { return least(n < low ? low : n, high); }

/* The triangle filter as Pillow places it: one source pixel wide to each side, wider by the factor
 * of shrinking. */
static int most_pixels(const struct rs_axis *axis) {
    return least((int)ceil(2 * fmax(axis->scale, 1)), axis->high - axis->low);
}

static int most_samples(const struct rs_axis *axis) {
    int pixels = most_pixels(axis);
    return axis->ratio == 1 ? pixels : least(pixels / axis->ratio + 2, axis->samples);
}

size_t rs_taps_bytes(const struct rs_axis *axis) {
    size_t most = rs_padded(most_samples(axis), 4);
    return (2 * sizeof(int) + most * sizeof(uint16_t)) * (size_t)axis->outputs;
}

/* Add a pixel's weight to the samples it was upsampled from. libjpeg's "fancy" upsampling takes 3/4
 * of the nearer sample and 1/4 of the farther one; past the edges it repeats those at the edges. */
static inline void spread(const struct rs_axis *axis, int pixel, double weight, int first,
                          double *sums) {
    if (axis->ratio == 1) {
        sums[pixel - first] += weight;
    } else if (axis->smooth) {
        int near = pixel >> 1, far = near + 2 * (pixel & 1) - 1;
        sums[near - first] += 0.75 * weight;
        sums[clamp(far, 0, axis->samples - 1) - first] += 0.25 * weight;
    } else {
        sums[pixel / axis->ratio - first] += weight;
    }
}

/* Fractions of 65536 without zeros at the ends; returns how many were left out at the beginning.
 * Rounding the running sum, not each weight, keeps the total exact: a flat area keeps its value. */
static int quantise(const double *sums, int most, double total, uint16_t *weights, int *count) {
    double running = 0, share = 65536 / total;
    int before = 0, skipped = 0, last = 0;
    for (int k = 0; k < most; k++) {
        running += sums[k] * share;
        int now = (int)(running + 0.5), weight = now - before;
        weights[k - skipped] = (uint16_t)least(weight, 65535);
        skipped += now == 0;
        last = weight ? k : last;
        before = now;
    }
    *count = last + 1 - skipped;
    return skipped;
}

void rs_taps_fill(struct rs_taps *taps, const struct rs_axis *axis, void *zeros) {
    double support = fmax(axis->scale, 1), slope = 1 / support, sums[2 * RS_MAX_SHRINK + 8];
    int pixels = most_pixels(axis), most = most_samples(axis);
    *taps = (struct rs_taps){.outputs = axis->outputs, .low = axis->samples};
    taps->most = rs_padded(most, 4); /* so many are summed at a time */
    taps->first = zeros;
    taps->count = taps->first + axis->outputs;
    taps->weights = (uint16_t *)(taps->count + axis->outputs);
    for (int o = 0; o < axis->outputs; o++) {
        double centre = axis->start + (o + 0.5) * axis->scale, total = 0;
        int from = clamp((int)(centre - support + 0.5), axis->low, axis->high - pixels);
        int first = axis->smooth ? (from - 1) / 2 : from / axis->ratio;
        first = clamp(first, 0, axis->samples - most);
        memset(sums, 0, (size_t)most * sizeof(double));
        for (int pixel = from; pixel < from + pixels; pixel++) {
            double weight = 1 - fabs(pixel + 0.5 - centre) * slope;
            weight = weight > 0 ? weight : 0;
            spread(axis, pixel, weight, first, sums);
            total += weight;
        }
        if (total <= 0) { /* rounding at the very edge: the nearest pixel alone */
            spread(axis, from, 1, first, sums);
            total = 1;
        }
        first += quantise(sums, most, total, taps->weights + (size_t)o * taps->most,
                          &taps->count[o]);
        taps->first[o] = first;
        taps->low = least(taps->low, first);
        taps->high = -least(-taps->high, -(first + taps->count[o]));
        taps->widest = -least(-taps->widest, -taps->count[o]);
    }
}
