/* What loadtest/client does for every token, compiled: it takes a tenth of the time.
 *
 * Python code there is the reference, to which property tests hold this: PythonReceiver of receiver.py, arrivals of
 * timestamps.py, event_chunks of http1.py, plain_sizes of shape.py. hatch_build.py compiles it where there is a C compiler. On Linux a thread can
 * receive for many receivers; it calls nothing of Python's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#ifdef __linux__
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#endif

enum { RECEIVE_BYTES = 65536, BLOCK_BYTES = 65536 };
enum { LOUD, CHUNKS, FRAMES, STREAM }; /* Quiet of receiver.py */
enum { FRAME_HEAD_BYTES = 9, DATA = 0, END_STREAM = 1 };

typedef struct {
    double read_s, delay_s;
    Py_ssize_t end; /* of the piece's bytes among those kept */
} Piece;

typedef struct {
    char *bytes;
    Py_ssize_t size, room;
    Piece *pieces;
    Py_ssize_t count, pieces_room;
} Store;

typedef struct Receiver {
    PyObject_HEAD
    PyObject *socket, *wake;
    int fd, error, quiet;
    char closed;
    double read_s;
    ssize_t got; /* of the last receive; below 0: nothing */
    Store store;
    struct Receiver *next; /* of those that a thread found to be looked at */
    bool is_due, is_paused;
} Receiver;

/* Held for the stores and lists of all receivers; never while Python runs. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char received[RECEIVE_BYTES]; /* of one receive, under the lock */

static double seconds_of(const struct timespec *time) { return (double)time->tv_sec + (double)time->tv_nsec * 1e-9; }

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return seconds_of(&now);
}

/* Returns the memory, moved where it had too little room; NULL where there is none. */
static void *with_room(void *memory, Py_ssize_t *room, Py_ssize_t needed, size_t each)
{
    if (needed <= *room) return memory;
    Py_ssize_t larger = needed + needed / 2;
    void *moved = realloc(memory, (size_t)larger * each);
    if (moved) *room = larger;
    return moved;
}

static bool keep(Store *store, const char *data, Py_ssize_t size, double read_s, double delay_s)
{
    char *bytes = with_room(store->bytes, &store->room, store->size + size, 1);
    if (bytes) store->bytes = bytes;
    Piece *pieces = with_room(store->pieces, &store->pieces_room, store->count + 1, sizeof(Piece));
    if (pieces) store->pieces = pieces;
    if (!bytes || !pieces) return false;
    memcpy(bytes + store->size, data, (size_t)size);
    store->size += size;
    pieces[store->count++] = (Piece){read_s, delay_s, store->size};
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

static bool contains(const char *data, ssize_t size, const char *text)
{
    ssize_t length = (ssize_t)strlen(text);
    for (ssize_t place = 0; place + length <= size; place++)
        if (!strncasecmp(data + place, text, (size_t)length)) return true;
    return false;
}

/* As begins_stream of receiver.py; returns the size of the head, or 0 where none does. */
static ssize_t stream_head_bytes(const char *data, ssize_t size)
{
    static const char status[] = "HTTP/1.1 200 ";
    const char *end = data;
    while (end + 4 <= data + size && memcmp(end, "\r\n\r\n", 4)) end++;
    if (end + 4 > data + size || size < (ssize_t)sizeof status || memcmp(data, status, sizeof status - 1)) return 0;
    bool is_stream = contains(data, end - data, "\r\ntransfer-encoding: chunked") &&
                     contains(data, end - data, "\r\ncontent-type: text/event-stream") &&
                     !contains(end, data + size - end, "\"error\"");
    return is_stream ? end + 4 - data : 0;
}

static bool may_wait(int quiet, const unsigned char *data, ssize_t size)
{
    if (quiet == CHUNKS)
        return size >= 4 && memcmp(data + size - 4, "\r\n\r\n", 4) && !memmem(data, (size_t)size, "0\r\n\r\n", 5);
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

/* Receives once, under the lock; returns whether what was received is to be looked at. */
static bool receive(Receiver *self)
{
    union {
        char bytes[64];
        struct cmsghdr aligned;
    } ancillary;
    struct iovec into = {received, sizeof received};
    struct msghdr message = {
        .msg_iov = &into, .msg_iovlen = 1, .msg_control = ancillary.bytes, .msg_controllen = sizeof ancillary.bytes};
    ssize_t size = self->got = recvmsg(self->fd, &message, MSG_DONTWAIT);
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return false;
        self->error = errno;
        return true;
    }
    struct timespec real;
    self->read_s = now_s();
    clock_gettime(CLOCK_REALTIME, &real);
    if (!size) self->closed = true;
    ssize_t head_bytes = self->quiet == STREAM ? stream_head_bytes(received, size) : 0;
    if (head_bytes) self->quiet = CHUNKS;
    if (size && !keep(&self->store, received, size, self->read_s, delay_of(&message, seconds_of(&real)))) self->error = ENOMEM;
    return !size || self->error || self->store.size > BLOCK_BYTES ||
           !(head_bytes == size || may_wait(self->quiet, (unsigned char *)received, size));
}

static PyObject *receive_once(PyObject *object, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(named))
{
    Receiver *self = (Receiver *)object;
    if (!self->wake) {
        PyErr_SetString(PyExc_RuntimeError, "the receiver has no socket");
        return NULL;
    }
    pthread_mutex_lock(&lock);
    bool is_due = receive(self);
    pthread_mutex_unlock(&lock);
    if (!is_due) Py_RETURN_NONE;
    return look(self);
}

static PyObject *drain(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Receiver *self = (Receiver *)object;
    pthread_mutex_lock(&lock); /* and not for longer: to make objects may run any of Python's code */
    Store store = self->store;
    self->store = (Store){0};
    pthread_mutex_unlock(&lock);
    PyObject *data = PyBytes_FromStringAndSize(store.bytes, store.size);
    PyObject *ends = PyList_New(store.count), *reads = PyList_New(store.count), *delays = PyList_New(store.count);
    bool whole = data && ends && reads && delays;
    for (Py_ssize_t place = 0; whole && place < store.count; place++) {
        const Piece *piece = &store.pieces[place];
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
    free(store.bytes);
    free(store.pieces);
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
    free(self->store.bytes);
    free(self->store.pieces);
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
    .tp_call = receive_once,
    .tp_traverse = traverse,
    .tp_clear = clear,
    .tp_dealloc = end,
    .tp_methods = methods,
    .tp_members = members,
};

#ifdef __linux__
/* -- a thread that receives for many receivers ----------------------------------------------------------------- */

enum { EVENTS = 256, PAUSE_BYTES = 1 << 17 }; /* a receiver that keeps more waits until it was looked at */
static const double LOOKS_S = 0.02; /* until the loop has its turn: what was received in a flood takes long to parse */
enum { HUNG_UP = EPOLLRDHUP | EPOLLHUP | EPOLLERR };

typedef struct {
    PyObject_HEAD
    pthread_t thread;
    int epoll, due, stop; /* file descriptors: of what is waited for, and of two events */
    bool is_running;
    Receiver **of_fd; /* each owned; NULL where there is none */
    int room, count;
    Receiver *first, *last; /* to be looked at; all are in of_fd, too */
} Thread;

/* Receives until nothing is left: epoll tells of what came, not of what is there. Returns as receive(). */
static bool receive_all(Receiver *self, bool is_hung_up)
{
    bool is_due = false, may_have_more;
    do {
        is_due |= receive(self);
        may_have_more = self->got == sizeof received || (self->got > 0 && is_hung_up);
    } while (may_have_more && !self->error && self->store.size <= PAUSE_BYTES);
    return is_due;
}

static void link_due(Thread *self, Receiver *receiver)
{
    if (receiver->is_due) return;
    receiver->is_due = true;
    if (self->last) self->last->next = receiver;
    else {
        self->first = receiver;
        eventfd_write(self->due, 1);
    }
    self->last = receiver;
}

static void *run(void *object)
{
    Thread *self = object;
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(self->epoll, events, EVENTS, -1);
        for (int place = 0; place < count; place++) {
            int fd = events[place].data.fd;
            if (fd == self->stop) return NULL;
            pthread_mutex_lock(&lock);
            Receiver *receiver = fd < self->room ? self->of_fd[fd] : NULL; /* NULL if it was removed just now */
            if (receiver && receive_all(receiver, events[place].events & HUNG_UP)) {
                receiver->is_paused = receiver->store.size > PAUSE_BYTES;
                if (receiver->closed || receiver->error || receiver->is_paused)
                    epoll_ctl(self->epoll, EPOLL_CTL_DEL, fd, NULL);
                link_due(self, receiver);
            }
            pthread_mutex_unlock(&lock);
        }
    }
}

static bool watch(Thread *self, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    return !epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Takes a receiver out of those to be looked at. */
static void unlink_due(Thread *self, Receiver *receiver)
{
    Receiver *before = NULL;
    for (Receiver *each = self->first; each && each != receiver; each = each->next) before = each;
    if (before) before->next = receiver->next;
    else self->first = receiver->next;
    if (self->last == receiver) self->last = before;
    receiver->next = NULL;
    receiver->is_due = false;
}

/* Looks at the receivers that are due now, for `LOOKS_S`; what one's wake raises leaves the others due. Those that become
 * due meanwhile wait for the next call, too: a flood must not keep the loop from its timers. */
static PyObject *look_at_due(PyObject *object, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(named))
{
    Thread *self = (Thread *)object;
    eventfd_t events;
    eventfd_read(self->due, &events);
    pthread_mutex_lock(&lock);
    int left = 0;
    for (Receiver *each = self->first; each; each = each->next) left++;
    pthread_mutex_unlock(&lock);
    double end_s = now_s() + LOOKS_S;
    for (;; left = now_s() < end_s ? left - 1 : 0) {
        pthread_mutex_lock(&lock);
        Receiver *receiver = left > 0 ? self->first : NULL;
        if (left <= 0 && self->first) eventfd_write(self->due, 1);
        if (receiver) {
            unlink_due(self, receiver);
            Py_INCREF(receiver);
        }
        pthread_mutex_unlock(&lock);
        if (!receiver) Py_RETURN_NONE;
        PyObject *looked = look(receiver);
        pthread_mutex_lock(&lock);
        if (receiver->is_paused && receiver->fd < self->room && self->of_fd[receiver->fd] == receiver)
            watch(self, receiver->fd);
        receiver->is_paused = false;
        if (!looked && self->first) eventfd_write(self->due, 1);
        pthread_mutex_unlock(&lock);
        Py_DECREF(receiver);
        if (!looked) return NULL;
        Py_DECREF(looked);
    }
}

static Receiver *receiver_of(PyObject *object)
{
    if (PyObject_TypeCheck(object, &receiver_type) && ((Receiver *)object)->wake) return (Receiver *)object;
    PyErr_SetString(PyExc_TypeError, "expected a receiver with a socket");
    return NULL;
}

static PyObject *add(PyObject *object, PyObject *added)
{
    Thread *self = (Thread *)object;
    Receiver *receiver = receiver_of(added);
    if (!receiver) return NULL;
    pthread_mutex_lock(&lock);
    bool is_added = true;
    if (receiver->fd >= self->room) {
        int room = receiver->fd * 2 + 64;
        Receiver **of_fd = realloc(self->of_fd, (size_t)room * sizeof *of_fd);
        is_added = of_fd != NULL;
        if (is_added) {
            memset(of_fd + self->room, 0, (size_t)(room - self->room) * sizeof *of_fd);
            self->of_fd = of_fd;
            self->room = room;
        } else errno = ENOMEM;
    }
    if (is_added && self->of_fd[receiver->fd]) {
        is_added = false;
        errno = EEXIST;
    }
    is_added = is_added && watch(self, receiver->fd);
    if (is_added) {
        Py_INCREF(receiver);
        self->of_fd[receiver->fd] = receiver;
        self->count++;
    }
    pthread_mutex_unlock(&lock);
    if (!is_added) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *discard(PyObject *object, PyObject *removed)
{
    Thread *self = (Thread *)object;
    Receiver *receiver = receiver_of(removed);
    if (!receiver) return NULL;
    pthread_mutex_lock(&lock);
    bool is_known = receiver->fd < self->room && self->of_fd[receiver->fd] == receiver;
    if (is_known) {
        epoll_ctl(self->epoll, EPOLL_CTL_DEL, receiver->fd, NULL);
        if (receiver->is_due) unlink_due(self, receiver);
        self->of_fd[receiver->fd] = NULL;
        self->count--;
    }
    pthread_mutex_unlock(&lock);
    if (is_known) Py_DECREF(receiver);
    Py_RETURN_NONE;
}

static PyObject *fileno_of(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(((Thread *)object)->due);
}

static int start_thread(PyObject *object, PyObject *arguments, PyObject *named)
{
    Thread *self = (Thread *)object;
    if (!PyArg_ParseTuple(arguments, "") || named || self->is_running) return -1;
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    self->due = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sigset_t all, before; /* signals are for Python's thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool is_ready = self->epoll >= 0 && self->due >= 0 && self->stop >= 0 && watch(self, self->stop);
    int error = is_ready ? pthread_create(&self->thread, NULL, run, self) : errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    self->is_running = !error;
    errno = error;
    if (error) PyErr_SetFromErrno(PyExc_OSError);
    return error ? -1 : 0;
}

static PyObject *new_thread(PyTypeObject *type, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(named))
{
    Thread *self = (Thread *)type->tp_alloc(type, 0);
    if (self) self->epoll = self->due = self->stop = -1;
    return (PyObject *)self;
}

static int traverse_thread(PyObject *object, visitproc visit, void *arg)
{
    Thread *self = (Thread *)object;
    for (int fd = 0; fd < self->room; fd++) Py_VISIT(self->of_fd[fd]);
    return 0;
}

static int clear_thread(PyObject *object)
{
    Thread *self = (Thread *)object;
    for (int fd = 0; fd < self->room; fd++)
        if (self->of_fd[fd]) Py_XDECREF(discard(object, (PyObject *)self->of_fd[fd]));
    return 0;
}

static void end_thread(PyObject *object)
{
    Thread *self = (Thread *)object;
    PyObject_GC_UnTrack(object);
    clear_thread(object);
    if (self->is_running) {
        eventfd_write(self->stop, 1);
        pthread_join(self->thread, NULL);
    }
    const int files[] = {self->epoll, self->due, self->stop};
    for (size_t place = 0; place < sizeof files / sizeof *files; place++)
        if (files[place] >= 0) close(files[place]);
    free(self->of_fd);
    Py_TYPE(object)->tp_free(object);
}

static PyMethodDef thread_methods[] = {
    {"add", add, METH_O, "Receive for a receiver from now on."},
    {"discard", discard, METH_O, "Receive no longer for a receiver, if it was added."},
    {"fileno", fileno_of, METH_NOARGS, "The file descriptor that is readable while a receiver is to be looked at."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef thread_members[] = {
    {"count", T_INT, offsetof(Thread, count), READONLY, "Receivers that were added."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject thread_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "loadtest.client._receiver.ReceivingThread",
    .tp_basicsize = sizeof(Thread),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "A thread that receives for the receivers added to it; see _receiver.pyi.",
    .tp_new = new_thread,
    .tp_init = start_thread,
    .tp_call = look_at_due,
    .tp_traverse = traverse_thread,
    .tp_clear = clear_thread,
    .tp_dealloc = end_thread,
    .tp_methods = thread_methods,
    .tp_members = thread_members,
};
#endif

/* -- events of a reply ----------------------------------------------------------------------------------------- */

static int hex_of(char digit)
{
    if (digit >= '0' && digit <= '9') return digit - '0';
    digit |= 0x20;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* Returns where the content of a chunk begins, and its size; NULL without a plain head. */
static const char *chunk_content(const char *from, const char *end, Py_ssize_t *size)
{
    const char *at = from;
    *size = 0;
    for (int digit; at < end && at - from < 7 && (digit = hex_of(*at)) >= 0; at++) *size = *size << 4 | digit;
    return at > from && end - at >= 2 && at[0] == '\r' && at[1] == '\n' ? at + 2 : NULL;
}

/* Whether a chunk's content is for the parser: it begins with a byte order mark, or a line ends with CR alone. */
static bool is_unusual(const char *data, Py_ssize_t size)
{
    if (size > 2 && !memcmp(data, "\xef\xbb\xbf", 3)) return true;
    const char *end = data + size;
    while ((data = memchr(data, '\r', (size_t)(end - data))))
        if (++data < end && *data != '\n') return true;
    return false;
}

static bool is_space(char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

static bool append_new(PyObject *list, PyObject *item)
{
    bool done = item && !PyList_Append(list, item);
    Py_XDECREF(item);
    return done;
}

static PyObject *array_type; /* of Python's module array */

/* The messages of a reply and their times, and the piece that is being looked at: where pieces end, and when they arrived. */
typedef struct {
    PyObject *messages, *ends, *arrivals;
    double *times;
    Py_ssize_t count, room, piece;
} Events;

/* Takes the lines of a chunk's content: the message of each line with data, and when the piece with its end arrived. */
static bool take_lines(Events *events, const char *data, Py_ssize_t line, Py_ssize_t last)
{
    while (line < last) {
        const char *from = data + line, *stop = memchr(from, '\n', (size_t)(last - line));
        line = stop + 1 - data;
        if (stop - from < 5 || memcmp(from, "data:", 5)) continue;
        Py_ssize_t ended = line - (stop[-1] == '\r'); /* that ends the line, too */
        for (from += 5; from < stop && is_space(*from);) from++;
        while (stop > from && is_space(stop[-1])) stop--;
        Py_ssize_t pieces = PySequence_Fast_GET_SIZE(events->ends);
        while (events->piece < pieces && PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(events->ends, events->piece)) < ended)
            events->piece++;
        if (events->piece >= PySequence_Fast_GET_SIZE(events->arrivals)) {
            PyErr_SetString(PyExc_IndexError, "an event after the last piece");
            return false;
        }
        double *times = with_room(events->times, &events->room, events->count + 1, sizeof *times);
        if (!times) return PyErr_NoMemory();
        events->times = times;
        times[events->count++] = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(events->arrivals, events->piece));
        if (!append_new(events->messages, PyBytes_FromStringAndSize(from, stop - from))) return false;
    }
    return true;
}

static PyObject *event_chunks(PyObject *Py_UNUSED(self), PyObject *arguments)
{
    PyObject *given, *ends, *arrivals;
    Py_ssize_t begin, length, size;
    char *data;
    if (!PyArg_ParseTuple(arguments, "SnOO", &given, &begin, &ends, &arrivals)) return NULL;
    if (PyBytes_AsStringAndSize(given, &data, &length)) return NULL;
    Events events = {
        PyList_New(0), PySequence_Fast(ends, "expected places"), PySequence_Fast(arrivals, "expected times"), NULL, 0, 0, 0};
    bool whole = events.messages && events.ends && events.arrivals;
    const char *content;
    while (whole && begin >= 0 && begin < length && (content = chunk_content(data + begin, data + length, &size))) {
        Py_ssize_t line = content - data, last = line + size;
        if (!size || last + 2 > length || memcmp(data + last - 1, "\n\r\n", 3) || is_unusual(content, size)) break;
        whole = take_lines(&events, data, line, last);
        begin = last + 2;
    }
    PyObject *times = NULL, *found = NULL;
    if (whole && !PyErr_Occurred())
        times = PyObject_CallFunction(
            array_type, "sy#", "d", events.times ? (char *)events.times : "", events.count * (Py_ssize_t)sizeof *events.times);
    if (times) found = Py_BuildValue("ONn", events.messages, times, begin);
    free(events.times);
    Py_XDECREF(events.messages);
    Py_XDECREF(events.ends);
    Py_XDECREF(events.arrivals);
    return found;
}

/* The buffer of an array of 64-bit integers; raises where it is none. */
static bool counts_of(PyObject *array, Py_buffer *counts)
{
    if (PyObject_GetBuffer(array, counts, PyBUF_WRITABLE | PyBUF_FORMAT)) return false;
    if (counts->itemsize == sizeof(long long) && counts->format && !strcmp(counts->format, "q") && counts->len) return true;
    PyBuffer_Release(counts);
    PyErr_SetString(PyExc_TypeError, "expected an array of type q");
    return false;
}

static PyObject *arrivals(PyObject *Py_UNUSED(self), PyObject *arguments)
{
    PyObject *reads, *delays, *late_counts;
    double previous_s, began_s, slack_s, limit_s, bin_s;
    if (!PyArg_ParseTuple(arguments, "OOddO(ddd)", &reads, &delays, &previous_s, &began_s, &late_counts, &slack_s, &limit_s, &bin_s))
        return NULL;
    Py_buffer counts;
    if (!counts_of(late_counts, &counts)) return NULL;
    PyObject *given = PySequence_Fast(reads, "expected times"), *late = PySequence_Fast(delays, "expected delays");
    Py_ssize_t size = given && late ? PySequence_Fast_GET_SIZE(given) : 0;
    bool whole = given && late;
    if (whole && PySequence_Fast_GET_SIZE(late) != size) {
        PyErr_SetString(PyExc_ValueError, "as many delays as times are needed");
        whole = false;
    }
    PyObject *arrived = whole ? PyList_New(size) : NULL;
    Py_ssize_t unstamped = 0, refused = 0, bins = counts.len / counts.itemsize;
    for (Py_ssize_t place = 0; arrived && place < size; place++) {
        double arrived_s = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(given, place)) - began_s;
        double late_s = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(late, place));
        if (late_s == INFINITY) unstamped++;
        else if (late_s < -slack_s || late_s > limit_s || arrived_s - late_s < previous_s - slack_s) refused++;
        else {
            Py_ssize_t bin = late_s > 0 ? (Py_ssize_t)(late_s / bin_s) : 0;
            ((long long *)counts.buf)[bin < bins ? bin : bins - 1]++;
            if (late_s > 0) arrived_s = arrived_s - late_s > previous_s ? arrived_s - late_s : previous_s;
        }
        previous_s = arrived_s;
        PyObject *time = PyFloat_FromDouble(arrived_s);
        if (!time || PyErr_Occurred()) {
            Py_XDECREF(time);
            Py_CLEAR(arrived);
        } else PyList_SET_ITEM(arrived, place, time);
    }
    PyBuffer_Release(&counts);
    Py_XDECREF(given);
    Py_XDECREF(late);
    return arrived ? Py_BuildValue("Nnn", arrived, unstamped, refused) : NULL;
}

static PyObject *whole_microseconds(PyObject *Py_UNUSED(self), PyObject *times)
{
    Py_buffer given;
    if (PyObject_GetBuffer(times, &given, PyBUF_SIMPLE | PyBUF_FORMAT)) return NULL;
    bool is_double = given.itemsize == sizeof(double) && given.format && !strcmp(given.format, "d");
    PyObject *rounded = is_double ? PyTuple_New(given.len / given.itemsize) : NULL;
    for (Py_ssize_t place = 0; rounded && place < PyTuple_GET_SIZE(rounded); place++) {
        PyObject *time = PyFloat_FromDouble((double)(long long)(((double *)given.buf)[place] * 1e6 + 0.5) / 1e6);
        if (time) PyTuple_SET_ITEM(rounded, place, time);
        else Py_CLEAR(rounded);
    }
    PyBuffer_Release(&given);
    if (!is_double) PyErr_SetString(PyExc_TypeError, "expected an array of type d");
    return rounded;
}

static bool is_plain(const unsigned char *text, Py_ssize_t size)
{
    for (Py_ssize_t place = 0; place < size; place++)
        if (text[place] < ' ' || text[place] > '~' || text[place] == '"' || text[place] == '\\') return false;
    return size > 0;
}

static PyObject *plain_sizes(PyObject *Py_UNUSED(self), PyObject *arguments)
{
    PyObject *messages;
    Py_ssize_t place;
    const char *head, *tail;
    Py_ssize_t head_size, tail_size;
    if (!PyArg_ParseTuple(arguments, "O!ny#y#", &PyList_Type, &messages, &place, &head, &head_size, &tail, &tail_size))
        return NULL;
    PyObject *sizes = PyList_New(0);
    for (; sizes && place >= 0 && place < PyList_GET_SIZE(messages); place++) {
        PyObject *message = PyList_GET_ITEM(messages, place);
        if (!PyBytes_Check(message)) break;
        const char *bytes = PyBytes_AS_STRING(message);
        Py_ssize_t size = PyBytes_GET_SIZE(message) - head_size - tail_size;
        if (size <= 0 || memcmp(bytes, head, (size_t)head_size) || memcmp(bytes + head_size + size, tail, (size_t)tail_size) ||
            !is_plain((const unsigned char *)bytes + head_size, size))
            break;
        if (!append_new(sizes, PyLong_FromSsize_t(size))) Py_CLEAR(sizes);
    }
    return sizes;
}

static PyMethodDef functions[] = {
    {"arrivals", arrivals, METH_VARARGS, "As arrivals of loadtest/client/timestamps.py."},
    {"event_chunks", event_chunks, METH_VARARGS, "As event_chunks of loadtest/client/http1.py."},
    {"plain_sizes", plain_sizes, METH_VARARGS, "As plain_sizes of loadtest/client/protocols/shape.py."},
    {"whole_microseconds", whole_microseconds, METH_O, "As whole_microseconds of loadtest/client/timestamps.py."},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *to, const char *name, PyTypeObject *type)
{
    if (PyType_Ready(type) < 0) return -1;
    return PyModule_AddObjectRef(to, name, (PyObject *)type);
}

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_receiver", .m_doc = "The compiled part of loadtest/client.", .m_size = -1,
    .m_methods = functions};

PyMODINIT_FUNC PyInit__receiver(void)
{
    PyObject *array_module = PyImport_ImportModule("array");
    array_type = array_module ? PyObject_GetAttrString(array_module, "array") : NULL;
    Py_XDECREF(array_module);
    PyObject *made = array_type ? PyModule_Create(&module) : NULL;
    bool whole = made && !add_type(made, "Receiver", &receiver_type);
#ifdef __linux__
    whole = whole && !add_type(made, "ReceivingThread", &thread_type);
#endif
    whole = whole && !PyModule_AddStringConstant(made, "SOURCE_SHA256", SOURCE_SHA256);
    if (!whole) Py_CLEAR(made);
    return made;
}
