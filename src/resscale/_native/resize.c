/* The resize and the colours. All arithmetic is on 16-bit integers in plain loops, so compilers
 * vectorise it, and every CPU gives the same pixels. */
#include "native.h"

#include <string.h>

/* One library for all CPUs: the loops exist twice, and the loader takes the version that fits. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__) && \
    !defined(RS_ONE_VERSION)
#define RS_VERSIONS __attribute__((target_clones("avx2", "default")))
#else
#define RS_VERSIONS
#endif
#define RS_INLINE static inline __attribute__((always_inline))

/* The upper half of the product: one instruction on vectors of 16-bit numbers. */
RS_INLINE uint16_t times(uint16_t a, uint16_t b) { return (uint16_t)(((uint32_t)a * b) >> 16); }

typedef uint8_t bytes __attribute__((vector_size(8)));
typedef uint16_t words __attribute__((vector_size(16)));
#ifdef __clang__
#define TAKE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TAKE(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

/* Rows become columns: three rounds of taking two rows' elements in turns. */
RS_INLINE void turn(words block[8]) {
    for (int round = 0; round < 3; round++) {
        words next[8];
        for (int k = 0; k < 4; k++) {
            next[2 * k] = TAKE(block[k], block[k + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * k + 1] = TAKE(block[k], block[k + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(block, next, sizeof(next));
    }
}

/* across[column][row] = from[row][column] in 1/256, 8 rows: so sums along rows vectorise, too. */
RS_INLINE void turn_in(const uint8_t *from, size_t pitch, size_t width, uint16_t *across) {
    for (size_t i = 0; i < width; i += 8) {
        words block[8];
        for (size_t k = 0; k < 8; k++) {
            bytes row;
            memcpy(&row, from + k * pitch + i, sizeof(row));
            block[k] = __builtin_convertvector(row, words) << 8;
        }
        turn(block);
        for (size_t k = 0; k < 8; k++)
            memcpy(across + (i + k) * RS_BATCH, &block[k], sizeof(words));
    }
}

RS_INLINE void turn_out(const uint16_t *across, uint16_t *to, size_t pitch) {
    for (size_t i = 0; i < pitch; i += 8) {
        words block[8];
        for (size_t k = 0; k < 8; k++)
            memcpy(&block[k], across + (i + k) * RS_BATCH, sizeof(words));
        turn(block);
        for (size_t k = 0; k < 8; k++)
            memcpy(to + k * pitch + i, &block[k], sizeof(words));
    }
}

/* out = the weighted sum of rows, or what it has and four rows more. As `times` rounds down, half a
 * unit is added for each. `taps`, 2 to 4, and `more` are known at compile time. */
RS_INLINE void blend(const uint16_t *const rows[4], const uint16_t *weights, int taps, int more,
                     int count, uint16_t *restrict out, size_t width) {
    const uint16_t *restrict a = rows[0], *restrict b = rows[1];
    const uint16_t *restrict c = rows[2], *restrict d = rows[3];
    uint16_t wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
#pragma GCC unroll 1
    for (size_t i = 0; i < width / RS_BATCH * RS_BATCH; i++) {
        uint16_t sum = (uint16_t)((more ? out[i] : count / 2) + times(a[i], wa) + times(b[i], wb));
        sum = taps < 3 ? sum : (uint16_t)(sum + times(c[i], wc));
        out[i] = taps < 4 ? sum : (uint16_t)(sum + times(d[i], wd));
    }
}

/* The taps from k on of `count`. */
RS_INLINE void add(const uint16_t *const rows[4], const uint16_t *weights, int k, int count,
                   uint16_t *out, size_t width) {
    if (k == 0 && count <= 2)
        blend(rows, weights, 2, 0, count, out, width);
    else if (k == 0 && count == 3)
        blend(rows, weights, 3, 0, count, out, width);
    else
        blend(rows, weights, 4, k > 0, count, out, width);
}

RS_VERSIONS
void rs_resize_rows(const struct rs_plane *plane, const struct rs_taps *x,
                    const uint8_t *const from[2], uint16_t *scratch, uint16_t *const to[2]) {
    uint16_t *across = scratch + plane->pitch * RS_BATCH;
    int widest = x->widest;
    for (int half = 0; half < 2; half++)
        turn_in(from[half] + x->low, plane->samples_pitch, rs_padded(x->high - x->low, 8),
                across + 8 * half);
    for (int k = 0; k < widest; k += 4)
        for (int o = 0; o < x->outputs; o++) {
            const uint16_t *a = across + (size_t)(x->first[o] - x->low + k) * RS_BATCH;
            const uint16_t *rows[4] = {a, a + RS_BATCH, a + 2 * RS_BATCH, a + 3 * RS_BATCH};
            add(rows, x->weights + (size_t)o * x->most + k, k, widest, scratch + o * RS_BATCH,
                RS_BATCH);
        }
    for (int half = 0; half < 2; half++)
        turn_out(scratch + 8 * half, to[half], plane->pitch);
}

RS_VERSIONS
void rs_blend_rows(const struct rs_plane *plane, const struct rs_taps *y, int row, uint16_t *out) {
    const uint16_t *weights = y->weights + (size_t)row * y->most;
    int count = y->count[row];
    for (int k = 0; k < count; k += 4) {
        const uint16_t *rows[4];
        for (int j = 0; j < 4; j++)
            rows[j] = rs_row(plane, y->first[row] + (k + j < count ? k + j : k));
        add(rows, weights + k, k, count, out, plane->pitch);
    }
}

RS_INLINE int16_t clamped(int16_t value) {
    value = value < 0 ? 0 : value;
    return value > 255 ? 255 : value;
}

/* The upper half of a product of signed numbers; the factor is a fraction of 65536. */
RS_INLINE int16_t part(int16_t a, int16_t factor) { return (int16_t)(((int32_t)a * factor) >> 16); }

/* ITU-R BT.601 as JFIF has it: R = Y + 1.402 Cr, G = Y - 0.344136 Cb - 0.714136 Cr,
 * B = Y + 1.772 Cb, in units of 1/64, in which all sums fit into 16 bits. */
RS_INLINE void store_colours(const uint16_t *restrict y, const uint16_t *restrict cb,
                             const uint16_t *restrict cr, uint8_t *restrict out, size_t width) {
    for (size_t i = 0; i < width; i++) {
        int16_t light = (int16_t)((y[i] >> 2) + 33); /* half of 64, and what >> has cut off */
        int16_t blue = (int16_t)((cb[i] >> 2) - 8192), red = (int16_t)((cr[i] >> 2) - 8192);
        int16_t r = (int16_t)(light + red + part(red, 26345));                     /* 0.402 */
        int16_t g = (int16_t)(light - part(blue, 22553) - red + part(red, 18734)); /* 1 - 0.714 */
        int16_t b = (int16_t)(light + blue + blue - part(blue, 14942));            /* 2 - 0.228 */
        out[3 * i] = (uint8_t)clamped(r >> 6);
        out[3 * i + 1] = (uint8_t)clamped(g >> 6);
        out[3 * i + 2] = (uint8_t)clamped(b >> 6);
    }
}

RS_VERSIONS
void rs_store(uint16_t *const *planes, int num_planes, uint8_t *out, size_t width,
              size_t channels) {
    if (num_planes == 3)
        store_colours(planes[0], planes[1], planes[2], out, width);
    for (size_t i = 0; num_planes == 1 && i < width * channels; i++)
        out[i] = (uint8_t)((planes[0][i / channels] + 128) >> 8);
}
