/* The data path's inner loops: copying pieces of mapped token files into batches, and the
 * arithmetic of the mixture order. `kernel.py` says what each function does; this file repeats the
 * integer arithmetic of `quota_tree.py`, `permutation.py` and `sampler.py` bit for bit.
 *
 * Arrays come through the buffer protocol, so that numpy's headers are not needed to build.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

#if defined(__GLIBC__)
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL __thread
#endif

/* --- arrays ----------------------------------------------------------------------------------- */

/* A C-contiguous array of `itemsize` bytes an item; `count` < 0 takes any number of items. */
static int take(PyObject *array, Py_buffer *view, Py_ssize_t itemsize, Py_ssize_t count,
                int writable, const char *name)
{
    if (PyObject_GetBuffer(array, view, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO) < 0)
        return -1;
    if (view->itemsize != itemsize || (count >= 0 && view->len != count * itemsize)) {
        PyErr_Format(PyExc_ValueError,
                     "%s has %zd bytes in items of %zd; expected %zd items of %zd bytes", name,
                     view->len, view->itemsize, count < 0 ? view->len / itemsize : count,
                     itemsize);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

static void release(Py_buffer *views, int number)
{
    while (number-- > 0)
        PyBuffer_Release(&views[number]);
}

/* The arrays that are attributes of `owner`, all of 8-byte items and of one length. */
static int take_attributes(PyObject *owner, PyObject *const *names, int number, Py_buffer *views)
{
    for (int i = 0; i < number; i++) {
        PyObject *array = PyObject_GetAttr(owner, names[i]);
        Py_ssize_t count = i ? views[0].len / 8 : -1;
        int failed = !array || take(array, &views[i], 8, count, 0, PyUnicode_AsUTF8(names[i])) < 0;
        Py_XDECREF(array); /* the view keeps it alive */
        if (failed) {
            release(views, i);
            return -1;
        }
    }
    return 0;
}

static int want_arguments(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments; found %zd", wanted, given);
    return -1;
}

/* --- a file that is cut while it is read ------------------------------------------------------ */

/* Reading a mapped page that the file no longer has raises SIGBUS in the thread that reads. While
 * a thread copies, `reading` names where it goes on from then; any other SIGBUS is handed to the
 * handler that was there before. */
static THREAD_LOCAL sigjmp_buf *volatile reading;
static struct sigaction previous;
static volatile sig_atomic_t handing_over;
static void *volatile handed_over; /* the address of the last access that was */

static void die_of(int number)
{
    signal(number, SIG_DFL); /* the access that failed is repeated on return, and ends the process */
}

static void on_bus_error(int number, siginfo_t *information, void *context)
{
    sigjmp_buf *resume = reading;
    int sent = information->si_code <= 0; /* by kill() or raise(): nothing is repeated on return */
    if (resume) {
        reading = NULL;
        siglongjmp(*resume, 1);
    }
    if (previous.sa_handler == SIG_IGN && sent)
        return;
    /* The previous handler may hold ours as its own previous one, and raise the signal again; or it
     * may return without having mended anything, so that the same access fails again. */
    if (handing_over || (!sent && information->si_addr == handed_over) ||
        previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
        die_of(number);
        if (sent)
            raise(number);
        return;
    }
    handing_over = 1;
    handed_over = sent ? NULL : information->si_addr;
    if (previous.sa_flags & SA_SIGINFO)
        previous.sa_sigaction(number, information, context);
    else
        previous.sa_handler(number);
    handing_over = 0;
}

/* Makes ours the handler, at the first copy and whenever another one has taken its place. Called
 * with the GIL held. */
static int guard_reading(void)
{
    struct sigaction current, ours;
    if (sigaction(SIGBUS, NULL, &current) < 0)
        goto failed;
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error)
        return 0;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    previous = current;
    if (sigaction(SIGBUS, &ours, NULL) < 0)
        goto failed;
    return 0;
failed:
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* --- copying ---------------------------------------------------------------------------------- */

/* Tokens may begin at any byte of a file. */
typedef uint8_t any8;
typedef uint16_t __attribute__((aligned(1), may_alias)) any16;
typedef uint32_t __attribute__((aligned(1), may_alias)) any32;
typedef uint64_t __attribute__((aligned(1), may_alias)) any64;

/* Where compiler and loader can, vectors of 32 bytes; those of 64 were slower, those of 16 too. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define DEFINE_COPY(NAME, TO, FROM)                                                                \
    FOR_EACH_PROCESSOR                                                                             \
    static void NAME(TO *restrict to, const FROM *restrict from, int64_t length)                   \
    {                                                                                              \
        for (int64_t i = 0; i < length; i++)                                                       \
            to[i] = (TO)from[i];                                                                   \
    }

DEFINE_COPY(copy_32_to_64, any64, any32)
DEFINE_COPY(copy_16_to_64, any64, any16)
DEFINE_COPY(copy_8_to_64, any64, any8)
DEFINE_COPY(copy_64_to_32, any32, any64)
DEFINE_COPY(copy_16_to_32, any32, any16)
DEFINE_COPY(copy_8_to_32, any32, any8)
DEFINE_COPY(copy_64_to_16, any16, any64)
DEFINE_COPY(copy_32_to_16, any16, any32)
DEFINE_COPY(copy_8_to_16, any16, any8)

static void copy_tokens(void *target, Py_ssize_t target_size, const void *source,
                        int64_t source_size, int64_t length)
{
    if (target_size == source_size) {
        memcpy(target, source, (size_t)(length * source_size));
        return;
    }
    switch (target_size * 16 + source_size) {
    case 8 * 16 + 4: copy_32_to_64(target, source, length); break;
    case 8 * 16 + 2: copy_16_to_64(target, source, length); break;
    case 8 * 16 + 1: copy_8_to_64(target, source, length); break;
    case 4 * 16 + 8: copy_64_to_32(target, source, length); break;
    case 4 * 16 + 2: copy_16_to_32(target, source, length); break;
    case 4 * 16 + 1: copy_8_to_32(target, source, length); break;
    case 2 * 16 + 8: copy_64_to_16(target, source, length); break;
    case 2 * 16 + 4: copy_32_to_16(target, source, length); break;
    case 2 * 16 + 1: copy_8_to_16(target, source, length); break;
    }
}

struct files {
    const uint64_t *address;
    const int64_t *num_tokens, *itemsize;
    int64_t count;
};

struct pieces {
    const int64_t *row, *column, *file, *start, *length;
    int64_t first, last, first_row, count;
};

struct batch {
    char *tokens;
    int64_t num_rows, num_columns, itemsize;
};

/* Whether the piece has a place in the batch and names a file. */
static int has_place(const struct files *files, const struct pieces *pieces,
                     const struct batch *batch, int64_t i)
{
    int64_t row = pieces->row[i] - pieces->first_row;
    int64_t column = pieces->column[i], length = pieces->length[i];
    return row >= 0 && row < batch->num_rows && column >= 0 && length >= 0 &&
           length <= batch->num_columns && column <= batch->num_columns - length &&
           pieces->file[i] >= 0 && pieces->file[i] < files->count;
}

/* Where the piece lies in memory; NULL if the file is not mapped or too short. */
static const char *source_of(const struct files *files, const struct pieces *pieces, int64_t i)
{
    int64_t file = pieces->file[i], start = pieces->start[i], length = pieces->length[i];
    if (!files->address[file] || start < 0 || length > files->num_tokens[file] ||
        start > files->num_tokens[file] - length)
        return NULL;
    return (const char *)(uintptr_t)files->address[file] + start * files->itemsize[file];
}

/* Windows lie anywhere, where no processor expects the next read: ask for its first cache lines while
 * the piece before it is copied. The pieces of a later batch count too. A request is only a hint,
 * and never faults. */
static void request(const struct files *files, const struct pieces *pieces, int64_t i)
{
    if (i >= pieces->count || pieces->file[i] < 0 || pieces->file[i] >= files->count)
        return;
    const char *source = source_of(files, pieces, i);
    if (source)
        for (int line = 0; line < 8; line++)
            __builtin_prefetch(source + 64 * line);
}

/* Copies; returns -1, or the number of the first piece that cannot be read. */
static int64_t copy_all(const struct files *files, const struct pieces *pieces,
                        const struct batch *batch)
{
    sigjmp_buf resume;
    volatile int64_t now = pieces->first;
    if (sigsetjmp(resume, 0))
        return now;
    reading = &resume;
    for (int64_t i = pieces->first; i < pieces->last; i++) {
        const char *source = source_of(files, pieces, i);
        now = i;
        if (!source) {
            reading = NULL;
            return i;
        }
        request(files, pieces, i + 1);
        int64_t row = pieces->row[i] - pieces->first_row;
        char *target =
            batch->tokens + (row * batch->num_columns + pieces->column[i]) * batch->itemsize;
        copy_tokens(target, batch->itemsize, source, files->itemsize[pieces->file[i]],
                    pieces->length[i]);
    }
    reading = NULL;
    return -1;
}

static PyObject *attributes_of_files[3], *attributes_of_pieces[5];

static PyObject *copy_checked(const struct files *files, const struct pieces *pieces,
                              const struct batch *batch)
{
    int64_t failed;
    if (pieces->first < 0 || pieces->last > pieces->count) {
        PyErr_Format(PyExc_ValueError, "pieces %lld to %lld asked for; there are %lld",
                     (long long)pieces->first, (long long)pieces->last, (long long)pieces->count);
        return NULL;
    }
    for (int64_t i = pieces->first; i < pieces->last; i++) {
        if (!has_place(files, pieces, batch, i)) {
            PyErr_Format(PyExc_ValueError,
                         "piece %lld has row %lld, column %lld, length %lld, file %lld; expected "
                         "rows from %lld, a batch of [%lld, %lld] and %lld files",
                         (long long)i, (long long)pieces->row[i], (long long)pieces->column[i],
                         (long long)pieces->length[i], (long long)pieces->file[i],
                         (long long)pieces->first_row, (long long)batch->num_rows,
                         (long long)batch->num_columns, (long long)files->count);
            return NULL;
        }
        int64_t size = files->itemsize[pieces->file[i]];
        if (size != 1 && size != 2 && size != 4 && size != 8) {
            PyErr_Format(PyExc_ValueError, "file %lld has items of %lld bytes; expected 1, 2, 4, 8",
                         (long long)pieces->file[i], (long long)size);
            return NULL;
        }
    }
    if (guard_reading() < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    failed = copy_all(files, pieces, batch);
    Py_END_ALLOW_THREADS;
    return PyLong_FromLongLong(failed);
}

/* The arrays of a table and of pieces. Both are frozen, and the next call mostly brings the same
 * ones: they stay open until another call brings others. Everything here needs the GIL. */
struct opened {
    PyObject *table, *pieces;
    Py_buffer of_files[3], of_pieces[5];
    int users; /* calls that copy now, and one for `last_opened` */
};
static struct opened *last_opened;

static void close_arrays(struct opened *opened)
{
    if (--opened->users)
        return;
    release(opened->of_files, 3);
    release(opened->of_pieces, 5);
    Py_DECREF(opened->table);
    Py_DECREF(opened->pieces);
    PyMem_Free(opened);
}

static struct opened *open_arrays(PyObject *table, PyObject *pieces)
{
    struct opened *opened = last_opened, *before = last_opened;
    if (opened && opened->table == table && opened->pieces == pieces) {
        opened->users++;
        return opened;
    }
    if (!(opened = PyMem_Malloc(sizeof *opened))) {
        PyErr_NoMemory();
        return NULL;
    }
    if (take_attributes(table, attributes_of_files, 3, opened->of_files) < 0)
        goto free_memory;
    if (take_attributes(pieces, attributes_of_pieces, 5, opened->of_pieces) < 0)
        goto release_files;
    opened->table = Py_NewRef(table);
    opened->pieces = Py_NewRef(pieces);
    opened->users = 2;
    last_opened = opened;
    if (before)
        close_arrays(before);
    return opened;
release_files:
    release(opened->of_files, 3);
free_memory:
    PyMem_Free(opened);
    return NULL;
}

/* copy_pieces(table, pieces, first, last, out, first_row) */
static PyObject *copy_pieces(PyObject *module, PyObject *const *arguments, Py_ssize_t number)
{
    Py_buffer out;
    PyObject *result = NULL;
    if (want_arguments(number, 6) < 0)
        return NULL;
    struct pieces pieces = {.first = PyLong_AsLongLong(arguments[2]),
                            .last = PyLong_AsLongLong(arguments[3]),
                            .first_row = PyLong_AsLongLong(arguments[5])};
    if (PyErr_Occurred())
        return NULL;
    struct opened *opened = open_arrays(arguments[0], arguments[1]);
    if (!opened)
        return NULL;
    if (PyObject_GetBuffer(arguments[4], &out, PyBUF_CONTIG) < 0)
        goto close;
    if (out.ndim != 2 || (out.itemsize != 2 && out.itemsize != 4 && out.itemsize != 8)) {
        PyErr_Format(PyExc_ValueError, "out has %d axes and items of %zd bytes; expected 2 axes "
                     "and items of 2, 4 or 8 bytes", out.ndim, out.itemsize);
        goto release_out;
    }
    const Py_buffer *of_files = opened->of_files, *of_pieces = opened->of_pieces;
    struct files files = {.address = of_files[0].buf, .num_tokens = of_files[1].buf,
                          .itemsize = of_files[2].buf, .count = of_files[0].len / 8};
    struct batch batch = {.tokens = out.buf, .num_rows = out.shape[0],
                          .num_columns = out.shape[1], .itemsize = out.itemsize};
    pieces.row = of_pieces[0].buf;
    pieces.column = of_pieces[1].buf;
    pieces.file = of_pieces[2].buf;
    pieces.start = of_pieces[3].buf;
    pieces.length = of_pieces[4].buf;
    pieces.count = of_pieces[0].len / 8;
    result = copy_checked(&files, &pieces, &batch);
release_out:
    PyBuffer_Release(&out);
close:
    close_arrays(opened);
    return result;
}

/* --- the schedule of a stage ------------------------------------------------------------------ */

/* A tree of quotas: inner node i sends quota[i] of its total[i] draws left, evenly in the ratio
 * share[i] to total_share[i]; its children are 2 i and 2 i + 1 of `children`, a leaf of domain d
 * being written ~d. */
struct tree {
    const int64_t *quota, *total, *share, *total_share;
    const int32_t *children;
    int64_t root;
};

static inline int64_t clamp(int64_t left, int64_t quota, int64_t at_least)
{
    left = left > at_least ? left : at_least;
    return left < quota ? left : quota;
}

/* The domain of a draw and its rank among the domain's draws. */
static void descend_one(const struct tree *tree, int64_t draw, int64_t *domain, int64_t *rank)
{
    int64_t node = tree->root;
    while (node >= 0) {
        int64_t quota = tree->quota[node], share = tree->share[node];
        int64_t total_share = tree->total_share[node];
        int64_t left = (int64_t)((double)draw * ((double)share / (double)total_share) + 0.5);
        /* Both products may wrap round 2**64; their difference is small and therefore exact. */
        int64_t rest = (int64_t)((uint64_t)draw * (uint64_t)share + (uint64_t)(total_share >> 1) -
                                 (uint64_t)left * (uint64_t)total_share);
        if (rest >= total_share) {
            left++;
            rest -= total_share;
        } else if (rest < 0) {
            left--;
            rest += total_share;
        }
        int64_t next = left + (rest >= total_share - share);
        int64_t at_least = quota - (tree->total[node] - draw);
        left = clamp(left, quota, at_least);
        next = clamp(next, quota, at_least + 1);
        if (next > left) {
            node = tree->children[2 * node];
            draw = left;
        } else {
            node = tree->children[2 * node + 1];
            draw -= left;
        }
    }
    *domain = ~node;
    *rank = draw;
}

/* descend(root, quota, total, share, total_share, children, draws, domain, rank) */
static PyObject *descend(PyObject *module, PyObject *const *arguments, Py_ssize_t number)
{
    static const char *const names[] = {"quota", "total", "share", "total_share", "children",
                                        "draws", "domain", "rank"};
    Py_buffer views[8];
    if (want_arguments(number, 9) < 0)
        return NULL;
    struct tree tree = {.root = PyLong_AsLongLong(arguments[0])};
    if (PyErr_Occurred())
        return NULL;
    for (int i = 0; i < 8; i++) {
        Py_ssize_t count = i == 0 || i == 5 ? -1 : i < 4 ? views[0].len / 8
                         : i == 4 ? 2 * (views[0].len / 8) : views[5].len / 8;
        if (take(arguments[i + 1], &views[i], i == 4 ? 4 : 8, count, i > 5, names[i]) < 0) {
            release(views, i);
            return NULL;
        }
    }
    tree.quota = views[0].buf;
    tree.total = views[1].buf;
    tree.share = views[2].buf;
    tree.total_share = views[3].buf;
    tree.children = views[4].buf;
    const int64_t *draws = views[5].buf;
    int64_t *domain = views[6].buf, *rank = views[7].buf;
    Py_ssize_t count = views[5].len / 8;
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t i = 0; i < count; i++)
        descend_one(&tree, draws[i], &domain[i], &rank[i]);
    Py_END_ALLOW_THREADS;
    release(views, 8);
    Py_RETURN_NONE;
}

/* --- keyed permutations ----------------------------------------------------------------------- */

#define GOLDEN ((uint64_t)0x9E3779B97F4A7C15u)
#define MAX_SIZE ((uint64_t)1 << 50)
#define NUM_ROUNDS 6
#define FEW 1024
#define PASSES_OF_FEW 3

static inline uint64_t subkey(uint64_t key, uint64_t index)
{
    uint64_t mixed = key + index * GOLDEN;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return mixed ^ (mixed >> 31);
}

static inline uint64_t hash32(uint64_t value)
{
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93u;
    value = (value ^ (value >> 32)) * 0xFF51AFD7ED558CCDu;
    return value >> 32;
}

static inline uint64_t shift(uint64_t coordinate, uint64_t side, uint64_t hash)
{
    coordinate += (hash * side) >> 32;
    return coordinate - (coordinate >= side ? side : 0);
}

static inline uint64_t walk(uint64_t point, uint64_t size, uint64_t rows, uint64_t columns,
                            uint64_t key)
{
    do {
        uint64_t row = point / columns, column = point % columns;
        for (uint64_t round = 1; round <= NUM_ROUNDS; round += 2) {
            row = shift(row, rows, hash32(column + key + GOLDEN * round));
            column = shift(column, columns, hash32(row + key + GOLDEN * (round + 1)));
        }
        point = row * columns + column;
    } while (point >= size);
    return point;
}

static uint64_t permuted(uint64_t index, uint64_t size, uint64_t key)
{
    uint64_t rows = (uint64_t)(int64_t)sqrt((double)(int64_t)size); /* sizes are below 2**51 */
    rows += rows * rows < size;
    uint64_t columns = (size + rows - 1) / rows;
    index = walk(index, size, rows, columns, key);
    for (uint64_t further = 1; size < FEW && further < PASSES_OF_FEW; further++)
        index = walk(index, size, rows, columns, key + GOLDEN * NUM_ROUNDS * further);
    return index;
}

/* permute(index, size, key, image) */
static PyObject *permute(PyObject *module, PyObject *const *arguments, Py_ssize_t number)
{
    static const char *const names[] = {"index", "size", "key", "image"};
    Py_buffer views[4];
    if (want_arguments(number, 4) < 0)
        return NULL;
    for (int i = 0; i < 4; i++)
        if (take(arguments[i], &views[i], 8, i ? views[0].len / 8 : -1, i == 3, names[i]) < 0) {
            release(views, i);
            return NULL;
        }
    const uint64_t *index = views[0].buf, *size = views[1].buf, *key = views[2].buf;
    uint64_t *image = views[3].buf;
    Py_ssize_t count = views[0].len / 8, i;
    Py_BEGIN_ALLOW_THREADS;
    for (i = 0; i < count && index[i] < size[i] && size[i] <= MAX_SIZE; i++)
        image[i] = permuted(index[i], size[i], key[i]);
    Py_END_ALLOW_THREADS;
    if (i < count)
        PyErr_Format(PyExc_ValueError, "element %llu of a permutation of %llu",
                     (unsigned long long)index[i], (unsigned long long)size[i]);
    release(views, 4);
    if (i < count)
        return NULL;
    Py_RETURN_NONE;
}

/* draw_windows(num_windows, keys, domain, draws, epoch, window): draw number `draws` of a domain that
 * has num_windows[domain] of them. */
static PyObject *draw_windows(PyObject *module, PyObject *const *arguments, Py_ssize_t number)
{
    static const char *const names[] = {"num_windows", "keys", "domain", "draws", "epoch",
                                        "window"};
    Py_buffer views[6];
    if (want_arguments(number, 6) < 0)
        return NULL;
    for (int i = 0; i < 6; i++) {
        Py_ssize_t count = i == 0 || i == 2 ? -1 : views[i < 2 ? 0 : 2].len / 8;
        if (take(arguments[i], &views[i], 8, count, i > 3, names[i]) < 0) {
            release(views, i);
            return NULL;
        }
    }
    const uint64_t *num_windows = views[0].buf, *keys = views[1].buf, *draws = views[3].buf;
    const int64_t *domain = views[2].buf;
    uint64_t *epoch = views[4].buf, *window = views[5].buf;
    int64_t num_domains = views[0].len / 8, count = views[2].len / 8, i;
    Py_BEGIN_ALLOW_THREADS;
    for (i = 0; i < count; i++) {
        int64_t of = domain[i];
        if (of < 0 || of >= num_domains || num_windows[of] - 1 >= MAX_SIZE)
            break;
        epoch[i] = draws[i] / num_windows[of];
        window[i] = permuted(draws[i] - epoch[i] * num_windows[of], num_windows[of],
                             subkey(keys[of], epoch[i]));
    }
    Py_END_ALLOW_THREADS;
    if (i < count)
        PyErr_Format(PyExc_ValueError, "draw %lld is of domain %lld, which has no windows",
                     (long long)i, (long long)domain[i]);
    release(views, 6);
    if (i < count)
        return NULL;
    Py_RETURN_NONE;
}

/* --- the shuffle inside a batch --------------------------------------------------------------- */

struct ticket {
    uint64_t value;
    int64_t place;
};

/* Sorts by value, stably. Values are hashes, evenly spread: nearly sorted by their leading bits
 * after one pass, so that few moves are left. `counts` has room for count + 1 numbers. */
static void sort_tickets(const struct ticket *tickets, struct ticket *sorted, int64_t *counts,
                         int64_t count)
{
    memset(counts, 0, (size_t)(count + 1) * sizeof *counts);
    for (int64_t i = 0; i < count; i++)
        counts[((tickets[i].value >> 32) * (uint64_t)count >> 32) + 1]++;
    for (int64_t i = 0; i < count; i++)
        counts[i + 1] += counts[i];
    for (int64_t i = 0; i < count; i++)
        sorted[counts[(tickets[i].value >> 32) * (uint64_t)count >> 32]++] = tickets[i];
    for (int64_t i = 1; i < count; i++) {
        struct ticket moving = sorted[i];
        int64_t j = i;
        for (; j > 0 && sorted[j - 1].value > moving.value; j--)
            sorted[j] = sorted[j - 1];
        sorted[j] = moving;
    }
}

/* shuffle(key, batch_size, first, steps, positions): places from `first` on of each step's batch,
 * as many as `positions` has room for. */
static PyObject *shuffle(PyObject *module, PyObject *const *arguments, Py_ssize_t number)
{
    Py_buffer of_steps, of_positions;
    PyObject *result = NULL;
    if (want_arguments(number, 5) < 0)
        return NULL;
    uint64_t key = PyLong_AsUnsignedLongLong(arguments[0]);
    int64_t batch_size = PyLong_AsLongLong(arguments[1]), first = PyLong_AsLongLong(arguments[2]);
    if (PyErr_Occurred() || take(arguments[3], &of_steps, 8, -1, 0, "steps") < 0)
        return NULL;
    if (take(arguments[4], &of_positions, 8, -1, 1, "positions") < 0)
        goto release_steps;
    const int64_t *steps = of_steps.buf;
    int64_t *positions = of_positions.buf, num_steps = of_steps.len / 8;
    int64_t share = num_steps ? of_positions.len / 8 / num_steps : 0;
    if (first < 0 || batch_size < 1 || batch_size >= INT32_MAX || share > batch_size - first) {
        PyErr_Format(PyExc_ValueError, "places %lld to %lld asked for in a batch of %lld",
                     (long long)first, (long long)(first + share), (long long)batch_size);
        goto release_positions;
    }
    struct ticket *tickets = PyMem_Malloc(2 * (size_t)batch_size * sizeof *tickets);
    int64_t *counts = PyMem_Malloc((size_t)(batch_size + 1) * sizeof *counts);
    if (!tickets || !counts) {
        PyErr_NoMemory();
        goto free_memory;
    }
    struct ticket *sorted = tickets + batch_size;
    Py_BEGIN_ALLOW_THREADS;
    for (int64_t step = 0; step < num_steps; step++) {
        uint64_t of_step = subkey(key, (uint64_t)steps[step]);
        for (int64_t place = 0; place < batch_size; place++)
            tickets[place] = (struct ticket){subkey(of_step, (uint64_t)place), place};
        sort_tickets(tickets, sorted, counts, batch_size);
        for (int64_t i = 0; i < share; i++)
            positions[step * share + i] = steps[step] * batch_size + sorted[first + i].place;
    }
    Py_END_ALLOW_THREADS;
    result = Py_NewRef(Py_None);
free_memory:
    PyMem_Free(tickets);
    PyMem_Free(counts);
release_positions:
    PyBuffer_Release(&of_positions);
release_steps:
    PyBuffer_Release(&of_steps);
    return result;
}

/* --- the module ------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"copy_pieces", (PyCFunction)(void (*)(void))copy_pieces, METH_FASTCALL, NULL},
    {"descend", (PyCFunction)(void (*)(void))descend, METH_FASTCALL, NULL},
    {"permute", (PyCFunction)(void (*)(void))permute, METH_FASTCALL, NULL},
    {"draw_windows", (PyCFunction)(void (*)(void))draw_windows, METH_FASTCALL, NULL},
    {"shuffle", (PyCFunction)(void (*)(void))shuffle, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_kernel", .m_size = -1, .m_methods = methods};

static int intern(PyObject **into, const char *const *names, int number)
{
    for (int i = 0; i < number; i++)
        if (!(into[i] = PyUnicode_InternFromString(names[i])))
            return -1;
    return 0;
}

PyMODINIT_FUNC PyInit__kernel(void)
{
    static const char *const of_files[] = {"address", "num_tokens", "itemsize"};
    static const char *const of_pieces[] = {"row", "column", "file", "start", "length"};
    if (intern(attributes_of_files, of_files, 3) < 0 ||
        intern(attributes_of_pieces, of_pieces, 5) < 0)
        return NULL;
    return PyModule_Create(&definition);
}
