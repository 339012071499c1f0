/* What the parts of the native decoder share. Nothing here knows Python. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum rs_status {
    RS_DONE = 0,
    RS_OTHER, /* not for this decoder, or damaged: let Pillow look; the message says why */
    RS_REFUSED, RS_NO_MEMORY /* a decompression bomb; we have too little */
};

/* Weights of 16 bits do not serve for more taps than RS_MAX_SHRINK leads to. */
enum { RS_MESSAGE = 256, RS_BATCH = 16, RS_MAX_SIDE = 16384, RS_MAX_SHRINK = 64 };

/* Width and height of a JPEG that rs_decode takes. */
enum rs_status rs_header(const uint8_t *data, size_t length, int size[2], char *message);

/* The region (left, top, right, bottom) in source pixels, finite and not empty. Of a cut, pixels
 * outside take no part in the resize. */
struct rs_box {
    double edges[4];
    int cut;
};

/* Decode a region of a JPEG, antialiased, into out[side][side][channels]; channels is 1 or 3. */
enum rs_status rs_decode(const uint8_t *data, size_t length, const struct rs_box *box, uint8_t *out,
                         int side, int channels, char *message);

/* One axis of a picture: `outputs` pixels, of `scale` source pixels each, from `start` on. */
struct rs_axis {
    double start, scale;
    int low, high;      /* the source pixels that take part: low <= pixel < high */
    int outputs, ratio; /* source pixels per sample of the plane */
    int samples, smooth; /* libjpeg interpolates between such samples; else it repeats them */
};

/* For each output, the samples it is made of; weights are 16-bit fractions that add up to one. */
struct rs_taps {
    int outputs, widest; /* the largest count */
    int low, high;       /* the samples that occur: low <= sample < high */
    int *first, *count;
    size_t most;
    uint16_t *weights; /* [outputs][most], zero from count on */
};

size_t rs_taps_bytes(const struct rs_axis *axis);
void rs_taps_fill(struct rs_taps *taps, const struct rs_axis *axis, void *zeros);
static inline size_t rs_padded(int n, size_t unit) { return ((size_t)n + unit - 1) / unit * unit; }

/* One group of rows, as libjpeg gives them; and the rows still needed, resized, in 1/256. */
struct rs_plane {
    uint8_t *samples;
    size_t samples_pitch, pitch;
    uint16_t *rows;
    int capacity; /* of rows, a power of two */
};

static inline uint16_t *rs_row(const struct rs_plane *plane, int row) {
    return plane->rows + (size_t)(row & (plane->capacity - 1)) * plane->pitch;
}

/* Two blocks of 8 rows. scratch is for 16 rows of outputs, of x's samples and of x->most more. */
void rs_resize_rows(const struct rs_plane *plane, const struct rs_taps *x,
                    const uint8_t *const from[2], uint16_t *scratch, uint16_t *const to[2]);

/* One row of the result in one plane, in 1/256, as long as the plane's rows. */
void rs_blend_rows(const struct rs_plane *plane, const struct rs_taps *y, int row, uint16_t *out);

/* A row of pixels from its planes, one or three. */
void rs_store(uint16_t *const *planes, int num_planes, uint8_t *out, size_t width,
              size_t channels);
