/* From a JPEG to the pixels of one region of it, over libjpeg-turbo's public interface.
 *
 * The planes (luma, and the two of colour, mostly of half the size) are taken as they come out of
 * the inverse DCT, each is resized to the size of the result, and the colours are converted there:
 * no picture of the full size is ever upsampled, converted or stored. */
#include "native.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
/* jerror.h needs jpeglib.h */
#include <jerror.h>

enum { PLANES = 3, BLOCKS = 16, MAX_SCANS = 100 };
static const double MAX_PIXELS = 2.0 * 89478485; /* where Pillow gives up, too */
/* Progressive files are kept whole in memory: 2 bytes for each of 3 × MAX_PIXELS, and some. */
static const long MAX_MEMORY = 1200L << 20;

struct work {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    enum rs_status status;
    char *message;
    void *blocks[BLOCKS]; /* what has been allocated */
    int num_blocks;
    int planes;
    struct rs_taps x[PLANES], y[PLANES];
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

/* Warnings are of damage, but for those which change no pixel and stand in many good files. */
static void on_message(j_common_ptr info, int level) {
    int code = info->err->msg_code;
    if (level < 0 && code != JWRN_EXTRANEOUS_DATA && code != JWRN_JFIF_MAJOR &&
        code != JWRN_ADOBE_XFORM)
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
    if (work->num_blocks == BLOCKS || posix_memalign(&block, 64, bytes ? bytes : 1))
        fail(work, RS_NO_MEMORY, "out of memory");
    work->blocks[work->num_blocks++] = block;
    return block;
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
    J_COLOR_SPACE colours = info->jpeg_color_space;
    if (info->data_precision != 8 ||
        !((info->num_components == 1 && colours == JCS_GRAYSCALE) ||
          (info->num_components == 3 && (colours == JCS_YCbCr || colours == JCS_RGB))))
        fail(work, RS_OTHER, "colours that Pillow converts");
    for (int c = 0; c < info->num_components; c++)
        if (info->max_h_samp_factor % info->comp_info[c].h_samp_factor ||
            info->max_v_samp_factor % info->comp_info[c].v_samp_factor)
            fail(work, RS_OTHER, "fractional subsampling");
    if ((double)info->image_width * info->image_height > MAX_PIXELS)
        fail(work, RS_REFUSED, "more than 178956970 pixels: a decompression bomb?");
}

static void end(struct work *work) {
    jpeg_destroy_decompress(&work->info);
    while (work->num_blocks)
        free(work->blocks[--work->num_blocks]);
}

enum rs_status rs_header(const uint8_t *data, size_t length, int size[2], char *message) {
    struct work work;
    memset(&work, 0, sizeof work);
    work.message = message;
    if (setjmp(work.escape) == 0) {
        begin(&work, data, length);
        size[0] = (int)work.info.image_width;
        size[1] = (int)work.info.image_height;
        work.status = RS_DONE;
    }
    end(&work);
    return work.status;
}

/* The part of the result that lies inside the picture, and the region that it shows. */
struct target {
    int left, top, width, height;
    struct rs_axis x, y;
};

static struct target aim(const struct work *work, const struct rs_box *region, int side) {
    struct target target;
    memset(&target, 0, sizeof target);
    const double *box = region->edges;
    double wide = work->info.image_width, high = work->info.image_height;
    double left = fmax(box[0], 0), top = fmax(box[1], 0);
    double right = fmin(box[2], wide), bottom = fmin(box[3], high);
    if (left >= right || top >= bottom)
        return target;
    double x = side / (box[2] - box[0]), y = side / (box[3] - box[1]);
    target.left = (int)rint((left - box[0]) * x);
    target.top = (int)rint((top - box[1]) * y);
    target.width = (int)rint((right - box[0]) * x) - target.left;
    target.height = (int)rint((bottom - box[1]) * y) - target.top;
    if (target.width <= 0 || target.height <= 0)
        return target;
    target.x.start = left;
    target.x.scale = (right - left) / target.width;
    target.x.low = region->cut ? (int)left : 0;
    target.x.high = region->cut ? (int)ceil(right) : (int)wide;
    target.x.outputs = target.width;
    target.y.start = top;
    target.y.scale = (bottom - top) / target.height;
    target.y.low = region->cut ? (int)top : 0;
    target.y.high = region->cut ? (int)ceil(bottom) : (int)high;
    target.y.outputs = target.height;
    return target;
}

/* The taps of each plane on both axes, upsampling as libjpeg does it included. */
static void choose_samples(struct work *work, const struct target *target) {
    struct jpeg_decompress_struct *info = &work->info;
    for (int c = 0; c < work->planes; c++) {
        jpeg_component_info *part = &info->comp_info[c];
        struct rs_axis x = target->x, y = target->y;
        x.ratio = info->max_h_samp_factor / part->h_samp_factor;
        y.ratio = info->max_v_samp_factor / part->v_samp_factor;
        x.samples = (int)part->downsampled_width;
        y.samples = (int)part->downsampled_height;
        int wide = x.ratio == 2 && x.samples > 2;
        x.smooth = wide && y.ratio <= 2;
        y.smooth = y.ratio == 2 && (x.ratio == 1 || wide);
        if (c == 2 && part->h_samp_factor == part[-1].h_samp_factor &&
            part->v_samp_factor == part[-1].v_samp_factor) {
            work->x[c] = work->x[1];
            work->y[c] = work->y[1];
            continue;
        }
        rs_taps_fill(&work->x[c], &x, grab(work, rs_taps_bytes(&x)));
        rs_taps_fill(&work->y[c], &y, grab(work, rs_taps_bytes(&y)));
    }
}

static int row_group(const struct work *work, int c) {
    return work->info.comp_info[c].v_samp_factor * DCTSIZE;
}

/* How many rows of MCUs must have been read for a batch of outputs. */
static int groups_for(const struct work *work, int first) {
    int groups = 0;
    for (int c = 0; c < work->planes; c++) {
        const struct rs_taps *y = &work->y[c];
        for (int o = first; o < first + RS_BATCH && o < y->outputs; o++) {
            int needed = (y->first[o] + y->count[o] - 1) / row_group(work, c) + 1;
            groups = needed > groups ? needed : groups;
        }
    }
    return groups;
}

static void allocate(struct work *work) {
    size_t widest = 0;
    for (int c = 0; c < work->planes; c++) {
        const struct rs_taps *x = &work->x[c], *y = &work->y[c];
        int most = 0, rows = row_group(work, c);
        for (int first = 0; first < y->outputs; first += RS_BATCH) {
            int low = y->first[first];
            for (int o = first; o < first + RS_BATCH && o < y->outputs; o++)
                low = y->first[o] < low ? y->first[o] : low;
            int held = groups_for(work, first) * rows - low;
            most = held > most ? held : most;
        }
        struct rs_plane *plane = &work->plane[c];
        plane->capacity = (most + rows - 1) / rows * rows;
        plane->pitch = (size_t)work->info.comp_info[c].width_in_blocks * DCTSIZE;
        plane->samples = grab(work, (size_t)plane->capacity * plane->pitch);
        int taken = x->high - x->low + x->widest; /* taps of no weight read past the end */
        size_t wide = (size_t)(taken > x->outputs ? taken : x->outputs);
        widest = wide > widest ? wide : widest;
    }
    work->pitch = (widest + 31) / 32 * 32;
    size_t bytes = RS_BATCH * work->pitch * sizeof(uint16_t);
    work->bands = grab(work, bytes);
    for (int c = 0; c < work->planes; c++)
        work->result[c] = memset(grab(work, bytes), 0, bytes);
}

/* Read one row of MCUs. Blocks of rows that nobody needs are not transformed. */
static void read_group(struct work *work, int group) {
    struct jpeg_decompress_struct *info = &work->info;
    JSAMPROW rows[PLANES][MAX_SAMP_FACTOR * DCTSIZE];
    JSAMPARRAY planes[PLANES] = {rows[0], rows[1], rows[2]};
    int needed = 0;
    for (int c = 0; c < work->planes; c++)
        needed |= work->y[c].low < (group + 1) * row_group(work, c);
    for (int c = 0; c < work->planes; c++) {
        struct rs_plane *plane = &work->plane[c];
        int height = row_group(work, c);
        info->comp_info[c].component_needed = needed;
        for (int row = 0; row < height; row++)
            rows[c][row] =
                plane->samples + (size_t)((group * height + row) % plane->capacity) * plane->pitch;
    }
    jpeg_read_raw_data(info, planes, (JDIMENSION)(info->max_v_samp_factor * DCTSIZE));
}

static void store(const struct work *work, int row, uint8_t *out, int width, int channels) {
    const uint16_t *const *p = (const uint16_t *const *)work->result;
    size_t at = (size_t)row * work->pitch;
    if (work->planes == 1)
        rs_store_grey(p[0] + at, out, width, channels);
    else if (work->info.jpeg_color_space == JCS_RGB)
        rs_store_rgb(p[0] + at, p[1] + at, p[2] + at, out, width);
    else
        rs_store_ycc(p[0] + at, p[1] + at, p[2] + at, out, width);
}

/* A file that was cut off has no end marker. What stands below the region is not decoded, so a cut
 * there would not be seen else. */
static void check_end(struct work *work, const uint8_t *data, size_t length) {
    const struct jpeg_source_mgr *source = work->info.src;
    if (work->info.unread_marker == JPEG_EOI ||
        (data[length - 2] == 0xFF && data[length - 1] == JPEG_EOI))
        return;
    const uint8_t *at = source->next_input_byte;
    size_t left = source->bytes_in_buffer;
    while (left > 1) {
        const uint8_t *found = memchr(at, 0xFF, left - 1);
        if (!found)
            break;
        if (found[1] == JPEG_EOI)
            return;
        left -= (size_t)(found + 1 - at);
        at = found + 1;
    }
    fail(work, RS_OTHER, "Premature end of JPEG file");
}

static void decode(struct work *work, const uint8_t *data, size_t length, const struct rs_box *box,
                   uint8_t *out, int side, int channels) {
    struct jpeg_decompress_struct *info = &work->info;
    begin(work, data, length);
    if (channels == 1 && info->jpeg_color_space == JCS_RGB)
        fail(work, RS_OTHER, "colours that Pillow converts");
    struct target target = aim(work, box, side);
    if (target.width != side || target.height != side)
        memset(out, 0, (size_t)side * (size_t)side * (size_t)channels);
    work->planes = channels == 1 ? 1 : info->num_components;
    info->raw_data_out = TRUE;
    if (target.width <= 0 || target.height <= 0) {
        work->planes = 0;
        check_end(work, data, length);
        return;
    }
    jpeg_calc_output_dimensions(info);
    choose_samples(work, &target);
    allocate(work);
    for (int c = work->planes; c < info->num_components; c++)
        info->comp_info[c].component_needed = FALSE;
    jpeg_start_decompress(info);
    for (int first = 0, group = 0; first < target.height; first += RS_BATCH) {
        for (int groups = groups_for(work, first); group < groups; group++)
            read_group(work, group);
        for (int c = 0; c < work->planes; c++)
            rs_resize_batch(&work->plane[c], &work->x[c], &work->y[c], first, work->bands,
                            work->result[c], work->pitch);
        for (int row = 0; row < RS_BATCH && first + row < target.height; row++)
            store(work, row,
                  out + ((size_t)(target.top + first + row) * (size_t)side + (size_t)target.left) *
                            (size_t)channels,
                  target.width, channels);
    }
    if (!jpeg_has_multiple_scans(info)) /* else the file has been read to its end */
        check_end(work, data, length);
}

enum rs_status rs_decode(const uint8_t *data, size_t length, const struct rs_box *box, uint8_t *out,
                         int side, int channels, char *message) {
    struct work work;
    memset(&work, 0, sizeof work);
    work.message = message;
    if (setjmp(work.escape) == 0) {
        decode(&work, data, length, box, out, side, channels);
        work.status = RS_DONE;
    }
    end(&work);
    return work.status;
}
