/* From a JPEG to the pixels of one region of it, over libjpeg-turbo's public interface.
 *
 * The planes (light, and two of colour, mostly of half the size) are taken as they come out of the
 * inverse DCT, each is resized to the size of the result, and the colours are converted there: no
 * picture of the full size is ever upsampled, converted or stored. */
#include "native.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h> /* behind stdio.h */
#include <jerror.h>  /* behind jpeglib.h */

enum { X, Y, KINDS = 2, PLANES, BLOCKS = 14, MAX_SCANS = 100 }; /* kinds: light, colour */
static const double MAX_PIXELS = 2.0 * 89478485; /* where Pillow gives up, too */
static const long MAX_MEMORY = 1200L << 20; /* progressive files are kept: 6 bytes for a pixel */

struct work {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    enum rs_status status;
    char *message;
    int num_blocks, planes;
    void *blocks[BLOCKS]; /* what has been allocated */
    struct rs_taps taps[2][KINDS];
    struct rs_plane plane[PLANES];
    int height[KINDS], first_group; /* rows of a group; the first that is needed */
    uint16_t *scratch, *result[PLANES];
};

static void fail(struct work *work, enum rs_status status, const char *message) {
    snprintf(work->message, RS_MESSAGE, "%s", message);
    work->status = status;
    longjmp(work->escape, 1);
}

static void on_error(j_common_ptr info) {
    char text[JMSG_LENGTH_MAX];
    info->err->format_message(info, text);
    fail(info->client_data, RS_OTHER, text);
}

/* Warnings are of damage, but for those of good files that were written in an odd way. */
static void on_message(j_common_ptr info, int level) {
    int code = info->err->msg_code;
    if (level < 0 && code != JWRN_EXTRANEOUS_DATA && code != JWRN_JFIF_MAJOR &&
        code != JWRN_ADOBE_XFORM && code != JWRN_BOGUS_PROGRESSION)
        on_error(info);
}

/* A few hundred bytes can ask for thousands of passes over a large picture. */
static void on_progress(j_common_ptr info) {
    struct work *work = info->client_data;
    if (work->info.input_scan_number > MAX_SCANS)
        fail(work, RS_REFUSED, "more than 100 scans: a decompression bomb?");
}

static void *grab(struct work *work, size_t bytes) {
    void *block = NULL;
    if (work->num_blocks == BLOCKS || posix_memalign(&block, 64, bytes))
        fail(work, RS_NO_MEMORY, "out of memory");
    return work->blocks[work->num_blocks++] = memset(block, 0, bytes);
}

static void begin(struct work *work, const uint8_t *data, size_t length) {
    struct jpeg_decompress_struct *info = &work->info;
    info->err = jpeg_std_error(&work->errors);
    work->errors.error_exit = on_error;
    work->errors.emit_message = on_message;
    info->client_data = work;
    jpeg_create_decompress(info);
    work->progress.progress_monitor = on_progress;
    info->progress = &work->progress;
    info->mem->max_memory_to_use = MAX_MEMORY;
    if (length < 4 || data[0] != 0xFF || data[1] != 0xD8)
        fail(work, RS_OTHER, "not a JPEG");
    jpeg_mem_src(info, data, (unsigned long)length);
    jpeg_read_header(info, TRUE);
    if (info->data_precision != 8 || (info->jpeg_color_space != JCS_YCbCr &&
                                      info->jpeg_color_space != JCS_GRAYSCALE))
        fail(work, RS_OTHER, "colours that Pillow converts");
    const jpeg_component_info *part = info->comp_info;
    for (int c = 0; c < info->num_components; c++)
        if (info->max_h_samp_factor % part[c].h_samp_factor ||
            info->max_v_samp_factor % part[c].v_samp_factor ||
            (c > 1 && part[c].h_samp_factor != part[1].h_samp_factor) ||
            (c > 1 && part[c].v_samp_factor != part[1].v_samp_factor))
            fail(work, RS_OTHER, "fractional subsampling, or another for each colour");
    if ((double)info->image_width * info->image_height > MAX_PIXELS)
        fail(work, RS_REFUSED, "more than 178956970 pixels: a decompression bomb?");
}

static enum rs_status end(struct work *work) {
    jpeg_destroy_decompress(&work->info);
    while (work->num_blocks)
        free(work->blocks[--work->num_blocks]);
    return work->status;
}

enum rs_status rs_header(const uint8_t *data, size_t length, int size[2], char *message) {
    struct work work = {.message = message};
    if (setjmp(work.escape) == 0) {
        begin(&work, data, length);
        size[0] = (int)work.info.image_width;
        size[1] = (int)work.info.image_height;
    }
    return end(&work);
}

/* Where on an axis the part of the box that lies inside the picture goes in the result, and what
 * of the picture it shows; 0 where that is nothing. */
static int aim(struct rs_axis *axis, int *place, const struct rs_box *box, int direction, int size,
               int side) {
    double from = box->edges[direction], to = box->edges[direction + 2];
    double low = fmax(from, 0), high = fmin(to, size);
    if (low >= high)
        return 0;
    *place = (int)rint((low - from) / (to - from) * side); /* of any box, however narrow */
    axis->outputs = (int)rint((high - from) / (to - from) * side) - *place;
    axis->start = low;
    axis->scale = (high - low) / axis->outputs;
    axis->low = box->cut ? (int)low : 0;
    axis->high = box->cut ? (int)ceil(high) : size;
    return axis->outputs > 0;
}

/* The taps of each kind of plane on both axes, upsampling as libjpeg does it included. */
static void choose_samples(struct work *work, const struct rs_axis axes[2]) {
    struct jpeg_decompress_struct *info = &work->info;
    for (int c = 0; c < KINDS && c < work->planes; c++) {
        jpeg_component_info *part = &info->comp_info[c];
        struct rs_axis x = axes[X], y = axes[Y];
        x.ratio = info->max_h_samp_factor / part->h_samp_factor;
        y.ratio = info->max_v_samp_factor / part->v_samp_factor;
        x.samples = (int)part->downsampled_width;
        y.samples = (int)part->downsampled_height;
        int wide = x.ratio == 2 && x.samples > 2;
        x.smooth = wide && y.ratio <= 2;
        y.smooth = y.ratio == 2 && (x.ratio == 1 || wide);
        rs_taps_fill(&work->taps[X][c], &x, grab(work, rs_taps_bytes(&x)));
        rs_taps_fill(&work->taps[Y][c], &y, grab(work, rs_taps_bytes(&y)));
        work->height[c] = part->v_samp_factor * DCTSIZE;
        int group = work->taps[Y][c].low / work->height[c];
        work->first_group = c && work->first_group < group ? work->first_group : group;
    }
}

/* How many groups of rows must have been read for an output, where `groups` have been. */
static int groups_for(const struct work *work, int output, int groups) {
    for (int kind = 0; kind < KINDS && kind < work->planes; kind++) {
        const struct rs_taps *y = &work->taps[Y][kind];
        while (y->first[output] + y->count[output] > groups * work->height[kind])
            groups++;
    }
    return groups;
}

/* Memory for a group of rows, for the resized rows that outputs wait for, and for one output. */
static void allocate(struct work *work) {
    size_t most = 0, pitch = rs_padded(work->taps[X][0].outputs, RS_BATCH), wide = sizeof(uint16_t);
    for (int c = 0; c < work->planes; c++) {
        const struct rs_taps *x = &work->taps[X][c > 0], *y = &work->taps[Y][c > 0];
        struct rs_plane *plane = &work->plane[c];
        int height = work->height[c > 0];
        plane->capacity = DCTSIZE;
        for (int o = 0, groups = 0; o < y->outputs; o++) {
            groups = groups_for(work, o, groups);
            while (plane->capacity < height || plane->capacity < groups * height - y->first[o])
                plane->capacity *= 2;
        }
        plane->pitch = pitch;
        plane->rows = grab(work, (size_t)plane->capacity * pitch * wide);
        work->result[c] = grab(work, pitch * wide);
        plane->samples_pitch = (size_t)work->info.comp_info[c].width_in_blocks * DCTSIZE;
        plane->samples = grab(work, (size_t)height * plane->samples_pitch + DCTSIZE);
        size_t taken = rs_padded(x->high - x->low, DCTSIZE) + x->most;
        most = taken > most ? taken : most;
    }
    work->scratch = grab(work, (pitch + most) * RS_BATCH * wide);
}

/* Resize what was read of the planes from `first` to `last`, all of one kind. */
static void resize_group(struct work *work, int group, int first, int last) {
    const struct rs_taps *x = &work->taps[X][first], *y = &work->taps[Y][first];
    const uint8_t *from[2];
    uint16_t *to[2];
    int count = 0, height = work->height[first], rows = (last - first + 1) * height;
    for (int i = 0; i < rows; i += DCTSIZE) {
        const struct rs_plane *plane = &work->plane[first + i / height];
        int number = group * height + i % height;
        if (number + DCTSIZE > y->low && number < y->high) {
            from[count] = plane->samples + (size_t)(i % height) * plane->samples_pitch;
            to[count++] = rs_row(plane, number);
        }
        if (count == 2 || (count == 1 && i + DCTSIZE == rows)) {
            from[1] = from[count - 1];
            to[1] = to[count - 1];
            rs_resize_rows(plane, x, from, work->scratch, to);
            count = 0;
        }
    }
}

/* Read a group of rows. Where it lies above the region it is not transformed. */
static void read_group(struct work *work, int group) {
    struct jpeg_decompress_struct *info = &work->info;
    JSAMPROW rows[PLANES][MAX_SAMP_FACTOR * DCTSIZE];
    JSAMPARRAY planes[PLANES] = {rows[0], rows[1], rows[2]};
    int needed = group >= work->first_group;
    for (int c = 0; c < work->planes; c++) {
        info->comp_info[c].component_needed = needed;
        for (int row = 0; row < work->height[c > 0]; row++)
            rows[c][row] = work->plane[c].samples + (size_t)row * work->plane[c].samples_pitch;
    }
    jpeg_read_raw_data(info, planes, (JDIMENSION)(info->max_v_samp_factor * DCTSIZE));
    if (needed)
        resize_group(work, group, 0, 0);
    if (needed && work->planes == PLANES)
        resize_group(work, group, 1, 2);
}

/* A file that was cut off has no end marker; a cut below the region would not be seen else. */
static void check_end(struct work *work, const uint8_t *data, size_t length) {
    const uint8_t *at = work->info.src->next_input_byte, *last = data + length - 1;
    if (work->info.unread_marker == JPEG_EOI || (last[-1] == 0xFF && last[0] == JPEG_EOI))
        return;
    for (; at < last && (at = memchr(at, 0xFF, (size_t)(last - at))); at++)
        if (at[1] == JPEG_EOI)
            return;
    fail(work, RS_OTHER, "Premature end of JPEG file");
}

static void decode(struct work *work, const uint8_t *data, size_t length, const struct rs_box *box,
                   uint8_t *out, int side, int channels) {
    struct jpeg_decompress_struct *info = &work->info;
    struct rs_axis axes[2];
    int left = 0, top = 0;
    begin(work, data, length);
    work->planes = channels == 1 ? 1 : info->num_components;
    int seen = aim(&axes[X], &left, box, X, (int)info->image_width, side) &&
               aim(&axes[Y], &top, box, Y, (int)info->image_height, side);
    if (!seen || axes[X].outputs < side || axes[Y].outputs < side)
        memset(out, 0, (size_t)side * (size_t)side * (size_t)channels);
    if (!seen) {
        check_end(work, data, length);
        return;
    }
    if (axes[X].scale > RS_MAX_SHRINK || axes[Y].scale > RS_MAX_SHRINK)
        fail(work, RS_OTHER, "shrunk more than 64 times");
    info->raw_data_out = TRUE;
    jpeg_calc_output_dimensions(info);
    choose_samples(work, axes);
    allocate(work);
    for (int c = work->planes; c < info->num_components; c++)
        info->comp_info[c].component_needed = FALSE;
    jpeg_start_decompress(info);
    for (int row = 0, group = 0; row < axes[Y].outputs; row++) {
        for (int groups = groups_for(work, row, group); group < groups; group++)
            read_group(work, group);
        for (int c = 0; c < work->planes; c++)
            rs_blend_rows(&work->plane[c], &work->taps[Y][c > 0], row, work->result[c]);
        size_t place = (size_t)(top + row) * (size_t)side + (size_t)left;
        rs_store(work->result, work->planes, out + place * (size_t)channels,
                 (size_t)axes[X].outputs, (size_t)channels);
    }
    if (!jpeg_has_multiple_scans(info)) /* else the file has been read to its end */
        check_end(work, data, length);
}

enum rs_status rs_decode(const uint8_t *data, size_t length, const struct rs_box *box, uint8_t *out,
                         int side, int channels, char *message) {
    struct work work = {.message = message};
    if (setjmp(work.escape) == 0)
        decode(&work, data, length, box, out, side, channels);
    return end(&work);
}
