/* The resize and the colours. All arithmetic is on 16-bit integers in plain loops, so compilers
 * vectorise it, and every CPU gives the same pixels. */
#include "native.h"

/* One library for all CPUs: the loops exist twice, and the loader takes the version that fits. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__) && \
    !defined(RS_ONE_VERSION)
#define RS_VERSIONS __attribute__((target_clones("avx2", "default")))
#else
#define RS_VERSIONS
#endif

#define RS_INLINE static inline __attribute__((always_inline))

/* The upper half of the product: one instruction on vectors of 16-bit numbers. */
RS_INLINE uint16_t times(uint16_t value, uint16_t weight) {
    return (uint16_t)(((uint32_t)value * weight) >> 16);
}

/* `times` rounds down, on average by half a unit for each tap. */
RS_INLINE uint16_t rounding(int taps) { return (uint16_t)(taps / 2); }

/* out = the weighted sum of rows, in 1/256. */
RS_INLINE void blend(const struct rs_plane *plane, const struct rs_taps *x, const struct rs_taps *y,
                     int output, uint16_t *restrict out) {
    int count = y->count[output];
    size_t width = (size_t)(x->high - x->low);
    const uint16_t *weights = y->weights + (size_t)output * (size_t)y->most;
    uint16_t start = rounding(count);
    for (int k = 0; k < count; k += 2) {
        int row = y->first[output] + k, pair = k + 1 < count;
        const uint8_t *restrict a = plane->samples + rs_row(plane, row) + x->low;
        const uint8_t *restrict b = plane->samples + rs_row(plane, row + pair) + x->low;
        uint16_t wa = weights[k], wb = pair ? weights[k + 1] : 0;
        for (size_t i = 0; i < width; i++)
            out[i] = (uint16_t)((k ? out[i] : start) + times((uint16_t)(a[i] << 8), wa) +
                                times((uint16_t)(b[i] << 8), wb));
    }
}

/* across[column][band] = bands[band][column], so that the sums along rows vectorise as well. */
RS_INLINE void interleave(const uint16_t *restrict bands, size_t pitch, uint16_t *restrict across,
                          size_t width) {
    for (size_t i = 0; i < width; i++)
        for (size_t band = 0; band < RS_BATCH; band++)
            across[i * RS_BATCH + band] = bands[band * pitch + i];
}

/* With `taps` a constant, the inner loop becomes straight code on vectors of all bands. */
RS_INLINE void sum_taps(const uint16_t *restrict across, const struct rs_taps *x, size_t taps,
                        uint16_t *restrict out) {
    size_t outputs = (size_t)x->outputs, most = (size_t)x->most;
    uint16_t start = rounding((int)taps);
    for (size_t o = 0; o < outputs; o++) {
        const uint16_t *restrict from = across + (size_t)(x->first[o] - x->low) * RS_BATCH;
        const uint16_t *restrict weights = x->weights + o * most;
#pragma GCC unroll 1
        for (size_t band = 0; band < RS_BATCH; band++) {
            uint16_t sum = start;
            for (size_t k = 0; k < taps; k++)
                sum = (uint16_t)(sum + times(from[k * RS_BATCH + band], weights[k]));
            out[o * RS_BATCH + band] = sum;
        }
    }
}

RS_INLINE void sum_across(const uint16_t *restrict across, const struct rs_taps *x,
                          uint16_t *restrict out) {
    switch (x->widest) {
    case 1: sum_taps(across, x, 1, out); break;
    case 2: sum_taps(across, x, 2, out); break;
    case 3: sum_taps(across, x, 3, out); break;
    case 4: sum_taps(across, x, 4, out); break;
    case 5: sum_taps(across, x, 5, out); break;
    case 6: sum_taps(across, x, 6, out); break;
    default: sum_taps(across, x, (size_t)x->widest, out);
    }
}

RS_INLINE void deal(const uint16_t *restrict from, uint16_t *restrict bands, size_t pitch,
                    size_t width) {
#pragma GCC ivdep
    for (size_t i = 0; i < width; i++)
        for (size_t band = 0; band < RS_BATCH; band++)
            bands[band * pitch + i] = from[i * RS_BATCH + band];
}

RS_VERSIONS
void rs_resize_batch(const struct rs_plane *plane, const struct rs_taps *x, const struct rs_taps *y,
                     int first, uint16_t *bands, uint16_t *across, size_t pitch) {
    for (size_t band = 0; band < RS_BATCH; band++) {
        int output = first + (int)band < y->outputs ? first + (int)band : y->outputs - 1;
        blend(plane, x, y, output, bands + band * pitch);
    }
    interleave(bands, pitch, across, (size_t)(x->high - x->low));
    sum_across(across, x, bands);
    deal(bands, across, pitch, (size_t)x->outputs);
}

RS_INLINE uint8_t byte(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* The upper half of a product of signed numbers; the factor is a fraction of 65536. */
RS_INLINE int16_t part(int16_t value, int16_t factor) {
    return (int16_t)(((int32_t)value * factor) >> 16);
}

/* ITU-R BT.601 as JFIF has it: R = Y + 1.402 Cr, G = Y - 0.344136 Cb - 0.714136 Cr,
 * B = Y + 1.772 Cb, in units of 1/64, in which all sums fit into 16 bits. */
RS_INLINE void store_colours(const uint16_t *restrict y, const uint16_t *restrict cb,
                             const uint16_t *restrict cr, uint8_t *restrict out, size_t width) {
    for (size_t i = 0; i < width; i++) {
        int16_t light = (int16_t)(((y[i] + 2) >> 2) + 32);
        int16_t blue = (int16_t)(((cb[i] + 2) >> 2) - 128 * 64);
        int16_t red = (int16_t)(((cr[i] + 2) >> 2) - 128 * 64);
        int16_t r = (int16_t)(light + red + part(red, 26345));                     /* 0.402 */
        int16_t g = (int16_t)(light - part(blue, 22553) - red + part(red, 18734)); /* 1 - 0.714 */
        int16_t b = (int16_t)(light + blue + blue - part(blue, 14942));            /* 2 - 0.228 */
        out[3 * i] = byte(r >> 6);
        out[3 * i + 1] = byte(g >> 6);
        out[3 * i + 2] = byte(b >> 6);
    }
}

RS_VERSIONS
void rs_store(uint16_t *const *planes, size_t from, int num_planes, uint8_t *out, size_t width,
              size_t channels) {
    const uint16_t *y = planes[0] + from;
    if (num_planes == 3)
        store_colours(y, planes[1] + from, planes[2] + from, out, width);
    else
        for (size_t i = 0; i < width; i++)
            for (size_t c = 0; c < channels; c++)
                out[i * channels + c] = byte((y[i] + 128) >> 8);
}
