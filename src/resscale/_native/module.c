/* The decoder as a Python module, in the limited API: one build serves all versions from 3.11 on. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <stdio.h> /* jpeglib.h needs it */
#include <string.h>

#include <jpeglib.h>

#include "native.h"

#define TEXT_OF(number) #number
#define TEXT(macro) TEXT_OF(macro)
static PyObject *jpeg_error; /* lives as long as the process */
/* What Python gets of a status: `done`, the reason as text, or an exception. */
static PyObject *answer(enum rs_status status, const char *message, PyObject *done) {
    if (status == RS_DONE)
        return done;
    Py_XDECREF(done);
    if (status == RS_OTHER)
        return PyUnicode_DecodeLatin1(message, (Py_ssize_t)strlen(message), NULL);
    if (status == RS_NO_MEMORY)
        return PyErr_NoMemory();
    PyErr_SetString(jpeg_error, message);
    return NULL;
}

static PyObject *read_header(PyObject *module, PyObject *data) {
    Py_buffer bytes;
    int size[2] = {0, 0};
    char message[RS_MESSAGE] = "";
    (void)module;
    if (PyObject_GetBuffer(data, &bytes, PyBUF_SIMPLE))
        return NULL;
    enum rs_status status = rs_header(bytes.buf, (size_t)bytes.len, size, message);
    PyBuffer_Release(&bytes);
    return answer(status, message, Py_BuildValue("(ii)", size[0], size[1]));
}

static int check(const double box[4], const Py_buffer *out) {
    double width = box[2] - box[0], height = box[3] - box[1];
    if (!(isfinite(width) && isfinite(height) && width > 0 && height > 0))
        PyErr_SetString(PyExc_ValueError, "the box must be finite, left < right and top < bottom");
    else if (out->ndim != 3 || out->itemsize != 1 || !out->format || strcmp(out->format, "B") ||
             out->shape[0] != out->shape[1] || out->shape[0] < 1 || out->shape[0] > RS_MAX_SIDE ||
             (out->shape[2] != 1 && out->shape[2] != 3))
        PyErr_Format(PyExc_ValueError,
                     "out must be uint8 (size, size, channels), size 1 to %d, channels 1 or 3",
                     RS_MAX_SIDE);
    return !PyErr_Occurred();
}

static PyObject *decode(PyObject *module, PyObject *arguments) {
    PyObject *data, *target, *result = NULL;
    Py_buffer bytes, out;
    struct rs_box box;
    double *edges = box.edges;
    char message[RS_MESSAGE] = "";
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OddddpO:decode", &data, &edges[0], &edges[1], &edges[2],
                          &edges[3], &box.cut, &target) ||
        PyObject_GetBuffer(data, &bytes, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(target, &out, PyBUF_CONTIG | PyBUF_FORMAT)) {
        PyBuffer_Release(&bytes);
        return NULL;
    }
    if (check(edges, &out)) {
        enum rs_status status;
        Py_BEGIN_ALLOW_THREADS
        status = rs_decode(bytes.buf, (size_t)bytes.len, &box, out.buf, (int)out.shape[0],
                           (int)out.shape[2], message);
        Py_END_ALLOW_THREADS
        result = answer(status, message, Py_BuildValue(""));
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&bytes);
    return result;
}

static PyMethodDef methods[] = {
    {"read_header", read_header, METH_O,
     "read_header(data)\n--\n\nReturn (width, height), or the reason why Pillow should look."},
    {"decode", decode, METH_VARARGS,
     "decode(data, left, top, right, bottom, cut, out)\n--\n\nFill out, uint8 (size, size, "
     "channels). Return None, or the reason why Pillow should look."},
    {NULL, NULL, 0, NULL}};

static int fill(PyObject *module) {
    if (!jpeg_error)
        jpeg_error = PyErr_NewException("resscale._native.jpeg.JpegError", PyExc_ValueError, NULL);
    if (!jpeg_error || PyModule_AddObjectRef(module, "JpegError", jpeg_error))
        return -1;
    return PyModule_AddStringConstant(module, "LIBJPEG", TEXT(LIBJPEG_TURBO_VERSION));
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "jpeg", "JPEG regions, decoded over libjpeg-turbo.", 0, methods, slots,
    NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_jpeg(void) { return PyModuleDef_Init(&definition); }
