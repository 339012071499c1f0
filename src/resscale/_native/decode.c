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

#include <jpeglib.h>

#include <jerror.h> /* behind jpeglib.h */

enum { X, Y, PLANES = 3, BLOCKS = 16, MAX_SCANS = 100 };
static const double MAX_PIXELS = 2.0 * 89478485; /* where Pillow gives up, too */
/* Progressive files are kept whole: 2 bytes for each of 3 × MAX_PIXELS, and some. */
static const long MAX_MEMORY = 1200L << 20;

struct work {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    enum rs_status status;
    char *message;
    void *blocks[BLOCKS]; /* what has been allocated */
    int num_blocks, planes;
    struct rs_taps taps[2][PLANES];
    struct rs_plane plane[PLANES];
    uint16_t *bands, *result[PLANES];
    size_t pitch;
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
    return work->blocks[work->num_blocks++] = block;
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
    for (int c = 0; c < info->num_components; c++)
        if (info->max_h_samp_factor % info->comp_info[c].h_samp_factor ||
            info->max_v_samp_factor % info->comp_info[c].v_samp_factor)
            fail(work, RS_OTHER, "fractional subsampling");
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
    double from = box->edges[direction], to = box->edges[direction + 2], scale = side / (to - from);
    double low = fmax(from, 0), high = fmin(to, size);
    if (low >= high)
        return 0;
    *place = (int)rint((low - from) * scale);
    axis->outputs = (int)rint((high - from) * scale) - *place;
    axis->start = low;
    axis->scale = (high - low) / axis->outputs;
    axis->low = box->cut ? (int)low : 0;
    axis->high = box->cut ? (int)ceil(high) : size;
    return axis->outputs > 0;
}

/* The taps of each plane on both axes, upsampling as libjpeg does it included. */
static void choose_samples(struct work *work, const struct rs_axis axes[2]) {
    struct jpeg_decompress_struct *info = &work->info;
    for (int c = 0; c < work->planes; c++) {
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
    }
}

static int row_group(const struct work *work, int c) {
    return work->info.comp_info[c].v_samp_factor * DCTSIZE;
}

/* How many groups of rows must have been read for a batch of outputs. */
static int groups_for(const struct work *work, int first) {
    int groups = 0;
    for (int c = 0; c < work->planes; c++) {
        const struct rs_taps *y = &work->taps[Y][c];
        for (int o = first; o < first + RS_BATCH && o < y->outputs; o++) {
            int needed = (y->first[o] + y->count[o] - 1) / row_group(work, c) + 1;
            groups = needed > groups ? needed : groups;
        }
    }
    return groups;
}

/* Memory for as many rows of the planes as a batch needs at a time, and for its results. */
static void allocate(struct work *work) {
    for (int c = 0; c < work->planes; c++) {
        const struct rs_taps *x = &work->taps[X][c], *y = &work->taps[Y][c];
        struct rs_plane *plane = &work->plane[c];
        plane->capacity = row_group(work, c); /* its rows are written in any order */
        for (int o = 0, groups = 0; o < y->outputs; o++) {
            int read = o % RS_BATCH ? 0 : groups_for(work, o);
            groups = read > groups ? read : groups;
            int held = groups * row_group(work, c) - y->first[o];
            plane->capacity = held > plane->capacity ? held : plane->capacity;
        }
        plane->pitch = (size_t)work->info.comp_info[c].width_in_blocks * DCTSIZE;
        plane->samples = grab(work, (size_t)plane->capacity * plane->pitch);
        int taken = x->high - x->low + x->widest; /* taps of no weight read past the end */
        size_t wide = (size_t)(taken > x->outputs ? taken : x->outputs);
        work->pitch = wide > work->pitch ? wide : work->pitch;
    }
    size_t bytes = RS_BATCH * work->pitch * sizeof(uint16_t);
    work->bands = grab(work, bytes);
    for (int c = 0; c < work->planes; c++)
        work->result[c] = memset(grab(work, bytes), 0, bytes);
}

/* Read one group of rows. What lies above the region is not transformed. */
static void read_group(struct work *work, int group) {
    struct jpeg_decompress_struct *info = &work->info;
    JSAMPROW rows[PLANES][MAX_SAMP_FACTOR * DCTSIZE];
    JSAMPARRAY planes[PLANES] = {rows[0], rows[1], rows[2]};
    int needed = FALSE;
    for (int c = 0; c < work->planes; c++)
        needed |= work->taps[Y][c].low < (group + 1) * row_group(work, c);
    for (int c = 0; c < work->planes; c++) {
        const struct rs_plane *plane = &work->plane[c];
        int height = row_group(work, c);
        info->comp_info[c].component_needed = needed;
        for (int row = 0; row < height; row++)
            rows[c][row] = plane->samples + rs_row(plane, group * height + row);
    }
    jpeg_read_raw_data(info, planes, (JDIMENSION)(info->max_v_samp_factor * DCTSIZE));
}

/* A file that was cut off has no end marker. What stands below the region is not decoded, so a cut
 * there would not be seen else. */
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
    for (int first = 0, group = 0; first < axes[Y].outputs; first += RS_BATCH) {
        for (int groups = groups_for(work, first); group < groups; group++)
            read_group(work, group);
        for (int c = 0; c < work->planes; c++)
            rs_resize_batch(&work->plane[c], &work->taps[X][c], &work->taps[Y][c], first,
                            work->bands, work->result[c], work->pitch);
        for (int row = 0; row < RS_BATCH && first + row < axes[Y].outputs; row++) {
            size_t place = (size_t)(top + first + row) * (size_t)side + (size_t)left;
            rs_store(work->result, (size_t)row * work->pitch, work->planes,
                     out + place * (size_t)channels, (size_t)axes[X].outputs, (size_t)channels);
        }
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
