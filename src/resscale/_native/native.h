/* What the parts of the native decoder share. Nothing here knows Python. */
#ifndef RESSCALE_NATIVE_H
#define RESSCALE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

enum rs_status {
    RS_DONE = 0,
    RS_OTHER,   /* not for this decoder, or damaged: let Pillow look; the message says why */
    RS_REFUSED, /* a decompression bomb */
    RS_NO_MEMORY
};

/* Weights of 16 bits do not serve for more taps than RS_MAX_SHRINK leads to. */
enum { RS_MESSAGE = 256, RS_BATCH = 8, RS_MAX_SIDE = 16384, RS_MAX_SHRINK = 64 };

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
    int low, high; /* the source pixels that take part: low <= pixel < high */
    int outputs;
    int ratio;   /* source pixels per sample of the plane */
    int smooth;  /* libjpeg interpolates between such samples; else it repeats them */
    int samples; /* of the plane */
};

/* For each output, the samples it is made of; weights are 16-bit fractions that add up to one. */
struct rs_taps {
    int outputs, most;
    int low, high; /* the samples that occur: low <= sample < high */
    int widest;    /* the largest count */
    int *first, *count;
    uint16_t *weights; /* [outputs][most], zero from count on */
};

size_t rs_taps_bytes(const struct rs_axis *axis);
void rs_taps_fill(struct rs_taps *taps, const struct rs_axis *axis, void *memory);

/* The rows of a plane that are still needed. */
struct rs_plane {
    uint8_t *samples;
    size_t pitch;
    int capacity; /* rows */
};

static inline size_t rs_row(const struct rs_plane *plane, int row) {
    return (size_t)(row % plane->capacity) * plane->pitch;
}

/* RS_BATCH outputs of the vertical axis from `first` on (past the last one, that one again).
 * result[row * pitch + column] is in 1/256; bands is scratch of RS_BATCH * pitch, too; pitch covers
 * the samples that x takes of a row, and its outputs. */
void rs_resize_batch(const struct rs_plane *plane, const struct rs_taps *x, const struct rs_taps *y,
                     int first, uint16_t *bands, uint16_t *result, size_t pitch);

/* A row of pixels from its planes, one or three, which begin at planes[c] + from. */
void rs_store(uint16_t *const *planes, size_t from, int num_planes, uint8_t *out, size_t width,
              size_t channels);

#endif
