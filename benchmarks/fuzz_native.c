/* Decodes a stream of inputs, each in memory of exactly its size, for benchmarks/fuzz_native.py.
 *
 * An input is a struct header and the bytes of a file. Ends with 0 when the stream ends; a finding
 * of a sanitizer ends it with another code. What came of the inputs is counted on stdout. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

struct header {
    double edges[4];
    uint32_t length, side, channels, cut;
};

int main(void) {
    struct header header;
    unsigned long counts[4] = {0, 0, 0, 0}, sum = 0;
    while (fread(&header, sizeof header, 1, stdin) == 1) {
        size_t pixels = (size_t)header.side * header.side * header.channels;
        uint8_t *data = malloc(header.length ? header.length : 1), *out = malloc(pixels);
        char message[RS_MESSAGE] = "";
        int size[2] = {0, 0};
        if (!data || !out || fread(data, 1, header.length, stdin) != header.length)
            return 2;
        memset(out, 0xA5, pixels);
        struct rs_box box = {.cut = (int)header.cut};
        memcpy(box.edges, header.edges, sizeof box.edges);
        enum rs_status first = rs_header(data, header.length, size, message);
        if (first == RS_DONE && (size[0] < 1 || size[1] < 1))
            return 3;
        enum rs_status status = rs_decode(data, header.length, &box, out, (int)header.side,
                                          (int)header.channels, message);
        counts[status]++;
        for (size_t i = 0; i < pixels; i++)
            sum += out[i]; /* every byte of the result is there to be read */
        free(data);
        free(out);
    }
    printf("%lu %lu %lu %lu %lu\n", counts[0], counts[1], counts[2], counts[3], sum);
    return 0;
}
