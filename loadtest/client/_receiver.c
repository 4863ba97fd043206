/* The receiver of loadtest/client/receiver.py, compiled: what it does for every token takes a tenth of the time.
 *
 * PythonReceiver there is the reference: a property test holds this one to it, piece by piece. hatch_build.py compiles
 * it where there is a C compiler.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { RECEIVE_BYTES = 65536, BLOCK_BYTES = 65536 };
enum { LOUD, CHUNKS, FRAMES }; /* Quiet of receiver.py */
enum { FRAME_HEAD_BYTES = 9, DATA = 0, END_STREAM = 1 };

typedef struct {
    double read_s, delay_s;
    Py_ssize_t end; /* of the piece's bytes among those kept */
} Piece;

typedef struct {
    PyObject_HEAD
    PyObject *socket, *wake;
    int fd, error, quiet;
    char closed;
    double read_s;
    char *bytes;
    Py_ssize_t size, room;
    Piece *pieces;
    Py_ssize_t count, pieces_room;
} Receiver;

static char received[RECEIVE_BYTES]; /* of one receive: only one runs at a time */

static double seconds_of(const struct timespec *time) { return (double)time->tv_sec + (double)time->tv_nsec * 1e-9; }

/* Returns the memory, moved where it had too little room; NULL where there is none. */
static void *with_room(void *memory, Py_ssize_t *room, Py_ssize_t needed, size_t each)
{
    if (needed <= *room) return memory;
    Py_ssize_t larger = needed + needed / 2;
    void *moved = PyMem_Realloc(memory, (size_t)larger * each);
    if (moved) *room = larger;
    return moved;
}

static bool keep(Receiver *self, const char *data, Py_ssize_t size, double read_s, double delay_s)
{
    char *bytes = with_room(self->bytes, &self->room, self->size + size, 1);
    if (bytes) self->bytes = bytes;
    Piece *pieces = with_room(self->pieces, &self->pieces_room, self->count + 1, sizeof(Piece));
    if (pieces) self->pieces = pieces;
    if (!bytes || !pieces) {
        PyErr_NoMemory();
        return false;
    }
    memcpy(bytes + self->size, data, (size_t)size);
    self->size += size;
    pieces[self->count++] = (Piece){read_s, delay_s, self->size};
    return true;
}

static double delay_of(struct msghdr *message, double real_s)
{
#ifdef SO_TIMESTAMPNS
    for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each))
        if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(each), sizeof stamp);
            return real_s - seconds_of(&stamp);
        }
#endif
    return INFINITY; /* UNSTAMPED */
}

static bool may_wait(int quiet, const unsigned char *data, ssize_t size)
{
    if (quiet == CHUNKS) return size >= 4 && memcmp(data + size - 4, "\r\n\r\n", 4);
    if (quiet != FRAMES) return false;
    ssize_t place = 0;
    while (size - place >= FRAME_HEAD_BYTES) {
        const unsigned char *frame = data + place;
        if (frame[3] != DATA || frame[4] & END_STREAM) return false;
        place += FRAME_HEAD_BYTES + (frame[0] << 16 | frame[1] << 8 | frame[2]);
    }
    return place == size;
}

/* Calls `wake`, which may let go of the receiver. */
static PyObject *look(Receiver *self)
{
    PyObject *wake = Py_NewRef(self->wake);
    PyObject *found = PyObject_CallNoArgs(wake);
    Py_DECREF(wake);
    return found;
}

static PyObject *receive(PyObject *object, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(named))
{
    Receiver *self = (Receiver *)object;
    if (!self->wake) {
        PyErr_SetString(PyExc_RuntimeError, "the receiver has no socket");
        return NULL;
    }
    union {
        char bytes[64];
        struct cmsghdr aligned;
    } ancillary;
    struct iovec into = {received, sizeof received};
    struct msghdr message = {
        .msg_iov = &into, .msg_iovlen = 1, .msg_control = ancillary.bytes, .msg_controllen = sizeof ancillary.bytes};
    ssize_t size = recvmsg(self->fd, &message, MSG_DONTWAIT);
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) Py_RETURN_NONE;
        self->error = errno;
        return look(self);
    }
    struct timespec now, real;
    clock_gettime(CLOCK_MONOTONIC, &now);
    clock_gettime(CLOCK_REALTIME, &real);
    self->read_s = seconds_of(&now);
    if (!size) self->closed = true;
    else if (!keep(self, received, size, self->read_s, delay_of(&message, seconds_of(&real)))) return NULL;
    if (size && self->size <= BLOCK_BYTES && may_wait(self->quiet, (unsigned char *)received, size)) Py_RETURN_NONE;
    return look(self);
}

static PyObject *drain(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Receiver *self = (Receiver *)object;
    PyObject *data = PyBytes_FromStringAndSize(self->bytes, self->size);
    PyObject *ends = PyList_New(self->count), *reads = PyList_New(self->count), *delays = PyList_New(self->count);
    bool whole = data && ends && reads && delays;
    for (Py_ssize_t place = 0; whole && place < self->count; place++) {
        const Piece *piece = &self->pieces[place];
        PyObject *end = PyLong_FromSsize_t(piece->end), *read_s = PyFloat_FromDouble(piece->read_s);
        PyObject *delay_s = PyFloat_FromDouble(piece->delay_s);
        whole = end && read_s && delay_s;
        PyList_SET_ITEM(ends, place, end);
        PyList_SET_ITEM(reads, place, read_s);
        PyList_SET_ITEM(delays, place, delay_s);
    }
    PyObject *drained = whole ? PyTuple_Pack(4, data, ends, reads, delays) : NULL;
    Py_XDECREF(data);
    Py_XDECREF(ends);
    Py_XDECREF(reads);
    Py_XDECREF(delays);
    if (drained) self->size = self->count = 0;
    return drained;
}

static int begin(PyObject *object, PyObject *arguments, PyObject *named)
{
    Receiver *self = (Receiver *)object;
    static char *names[] = {"socket", "wake", NULL};
    PyObject *socket, *wake;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OO", names, &socket, &wake)) return -1;
    int fd = PyObject_AsFileDescriptor(socket);
    if (fd < 0) return -1;
    Py_INCREF(socket);
    Py_XSETREF(self->socket, socket);
    Py_INCREF(wake);
    Py_XSETREF(self->wake, wake);
    self->fd = fd;
    return 0;
}

static int traverse(PyObject *object, visitproc visit, void *arg)
{
    Receiver *self = (Receiver *)object;
    Py_VISIT(self->socket);
    Py_VISIT(self->wake);
    return 0;
}

static int clear(PyObject *object)
{
    Receiver *self = (Receiver *)object;
    Py_CLEAR(self->socket);
    Py_CLEAR(self->wake);
    return 0;
}

static void end(PyObject *object)
{
    Receiver *self = (Receiver *)object;
    PyObject_GC_UnTrack(object);
    clear(object);
    PyMem_Free(self->bytes);
    PyMem_Free(self->pieces);
    Py_TYPE(object)->tp_free(object);
}

static PyMethodDef methods[] = {
    {"drain", drain, METH_NOARGS, "As PythonReceiver.drain."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"quiet", T_INT, offsetof(Receiver, quiet), 0, NULL},
    {"closed", T_BOOL, offsetof(Receiver, closed), READONLY, NULL},
    {"error", T_INT, offsetof(Receiver, error), READONLY, NULL},
    {"read_s", T_DOUBLE, offsetof(Receiver, read_s), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject receiver_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "loadtest.client._receiver.Receiver",
    .tp_basicsize = sizeof(Receiver),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "As PythonReceiver of loadtest/client/receiver.py.",
    .tp_new = PyType_GenericNew,
    .tp_init = begin,
    .tp_call = receive,
    .tp_traverse = traverse,
    .tp_clear = clear,
    .tp_dealloc = end,
    .tp_methods = methods,
    .tp_members = members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_receiver", .m_doc = "The compiled receiver of loadtest/client.", .m_size = -1};

PyMODINIT_FUNC PyInit__receiver(void)
{
    if (PyType_Ready(&receiver_type) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (!made) return NULL;
    Py_INCREF(&receiver_type);
    if (PyModule_AddObject(made, "Receiver", (PyObject *)&receiver_type) < 0) {
        Py_DECREF(&receiver_type);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
