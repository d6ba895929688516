/* A stand-in for libcuda without a GPU: `tests/cuda/fake/__init__.py` compiles it.

   It refuses what a driver or a GPU would: a launch beyond the hardware's limits (read out of the
   machine code that is loaded), a call without a context in its thread, a copy or an argument
   beyond its allocation, a handle that nobody made. Work is done as late as is allowed, when
   somebody waits for it, so that a wait that is missing shows. Addresses of device memory are none
   of the host's: whoever reads there crashes.

   Kernels compute nothing, but a few do what shows whether the right numbers are in the right
   places: records become rows and rows records; each step of a stream adds its first input to the
   first number of the first layer's h, which the next layers hand on, and its outputs are that
   number, plus 0, 1, 2, ... */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "code.h"

typedef int Result;
typedef uint64_t Pointer;
enum { OK, INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, BAD_HANDLE = 400, NOT_FOUND = 500,
       ILLEGAL_ADDRESS = 700, TOO_MANY_RESOURCES = 701, TOO_MANY_TOGETHER = 720 };

/* An H100. */
enum { MULTIPROCESSORS = 132, REGISTERS = 65536, THREADS_OF_ALL = 2048,
       BLOCKS_OF_ALL = 32, SHARED_OPTIN = 232448, SHARED_OF_ALL = 233472,
       SHARED_OF_SYSTEM = 1024 };

#define MANY 4096

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static Result refuse(Result error, const char *why, long long value)
{
    fprintf(stderr, "fake driver: %s (%lld)\n", why, value);
    return error;
}

/* Contexts: one, which each thread has on a stack of its own */

static char the_context;
static __thread int depth;
static __thread void *stack[64];

static Result without_context(const char *function)
{
    return depth ? OK : refuse(NO_CONTEXT, function, 0);
}
#define IN_CONTEXT do { if (without_context(__func__)) return NO_CONTEXT; } while (0)

Result cuInit(unsigned flags) { return OK; }
Result cuDriverGetVersion(int *version) { *version = 13000; return OK; }
Result cuDeviceGetCount(int *count) { *count = 1; return OK; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
Result cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return OK; }
Result cuDeviceGetUuid(void *uuid, int device) { memset(uuid, 7, 16); return OK; }
Result cuDeviceGetUuid_v2(void *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
Result cuDeviceTotalMem(size_t *bytes, int device) { *bytes = 80ull << 30; return OK; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = &the_context; return OK; }
Result cuDevicePrimaryCtxRelease(int device) { return OK; }
Result cuDevicePrimaryCtxReset(int device) { return OK; }
Result cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { *flags = 0; *active = 1; return OK; }
Result cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : 0; return OK; }
Result cuCtxSetCurrent(void *context)
{
    if (context && context != &the_context) return refuse(NO_CONTEXT, "no context of this driver", 0);
    if (!context) { depth = depth ? depth - 1 : 0; return OK; }
    stack[depth ? depth - 1 : depth++] = context;
    return OK;
}
Result cuCtxPushCurrent(void *context) { if (depth == 64) return INVALID; stack[depth++] = context; return OK; }
Result cuCtxPopCurrent(void **context) { IN_CONTEXT; *context = stack[--depth]; return OK; }
Result cuCtxGetDevice(int *device) { IN_CONTEXT; *device = 0; return OK; }
Result cuCtxGetId(void *context, unsigned long long *id) { *id = 1; return OK; }
Result cuCtxGetApiVersion(void *context, unsigned *version) { *version = 13000; return OK; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 1024; return OK; }

Result cuDeviceGetAttribute(int *value, int attribute, int device)
{
    const char *capability = getenv("FAKE_CAPABILITY"); /* such as 90 */
    int number = capability ? atoi(capability) : 90;
    switch (attribute) {
    case 1: *value = MAX_THREADS; break;
    case 5: *value = 2147483647; break;
    case 6: case 7: *value = 65535; break;
    case 8: *value = SHARED; break;
    case 10: *value = 32; break;
    case 12: *value = REGISTERS; break;
    case 16: *value = MULTIPROCESSORS; break;
    case 75: *value = number / 10; break;
    case 76: *value = number % 10; break;
    case 97: *value = SHARED_OPTIN; break;
    default: *value = 1;
    }
    return OK;
}

/* Memory */

static struct { char *host; size_t size; Pointer kind; } memory[MANY];

/* Where memory lies, of the device or pinned; null if the bytes are not all in one allocation. */
static char *place_of(Pointer pointer, size_t size)
{
    Pointer kind = pointer & (DEVICE | MAPPED);
    char *host = (char *)(pointer & ~kind);
    for (int i = 0; kind && i < MANY; i++)
        if (memory[i].host && memory[i].kind == kind && host >= memory[i].host
            && host + size <= memory[i].host + memory[i].size)
            return host;
    return 0;
}

Result cuMemGetInfo(size_t *left, size_t *total) { IN_CONTEXT; *left = 70ull << 30; *total = 80ull << 30; return OK; }
static Pointer allocate(size_t size, Pointer kind)
{
    Pointer found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; !found && i < MANY; i++)
        if (!memory[i].host) {
            memory[i].host = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
            memory[i].size = size;
            memory[i].kind = kind;
            memset(memory[i].host, 0xff, size); /* NaN: nobody has written it yet */
            found = (Pointer)memory[i].host | kind;
        }
    pthread_mutex_unlock(&lock);
    return found;
}
Result cuMemAlloc(Pointer *pointer, size_t size)
{
    IN_CONTEXT;
    *pointer = allocate(size, DEVICE);
    return *pointer ? OK : NO_MEMORY;
}
Result cuMemHostAlloc(void **pointer, size_t size, unsigned flags)
{
    IN_CONTEXT;
    Pointer found = allocate(size, MAPPED);
    *pointer = (void *)(found & ~MAPPED);
    return found ? OK : NO_MEMORY;
}
Result cuMemAllocHost(void **pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }
Result cuMemHostGetDevicePointer(Pointer *pointer, void *host, unsigned flags)
{
    *pointer = (Pointer)host | MAPPED;
    return place_of(*pointer, 1) ? OK : refuse(INVALID, "no pinned memory", 0);
}
Result cuPointerGetAttribute(void *data, int attribute, Pointer pointer) { *(Pointer *)data = pointer; return OK; }

/* Machine code */

Result cuLibraryLoadData(void **loaded, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m)
{
    IN_CONTEXT;
    *loaded = read_library(code);
    return *loaded ? OK : refuse(INVALID, "no machine code", 0);
}
Result cuLibraryUnload(void *library) { return OK; }
Result cuLibraryGetKernel(void **found, void *loaded, const char *name)
{
    Library *library = loaded;
    for (int i = 0; i < library->num_kernels; i++)
        if (!strcmp(library->kernels[i].name, name)) { *found = &library->kernels[i]; return OK; }
    return refuse(NOT_FOUND, name, 0);
}
Result cuLibraryGetKernelCount(unsigned *count, void *library) { *count = 1; return OK; }
Result cuKernelGetFunction(void **function, void *kernel) { *function = kernel; return OK; }
Result cuKernelSetCacheConfig(void *kernel, int config, int device) { return OK; }
Result cuKernelGetAttribute(int *value, int attribute, void *function, int device)
{
    Kernel *kernel = function;
    *value = attribute == 0 ? kernel->threads : attribute == 1 ? kernel->static_shared
           : attribute == 4 ? kernel->registers : attribute == 8 ? kernel->dynamic_shared : 0;
    return OK;
}
Result cuKernelSetAttribute(int attribute, int value, void *function, int device)
{
    Kernel *kernel = function;
    if (attribute != 8) return OK;
    if (value + kernel->static_shared > SHARED_OPTIN)
        return refuse(INVALID, "more shared memory than a block can have", value);
    kernel->dynamic_shared = value;
    return OK;
}
Result cuFuncGetAttribute(int *value, int attribute, void *f) { return cuKernelGetAttribute(value, attribute, f, 0); }
Result cuFuncSetAttribute(void *f, int attribute, int value) { return cuKernelSetAttribute(attribute, value, f, 0); }

static int smaller(int a, int b) { return a < b ? a : b; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, void *function, int threads, size_t dynamic)
{
    Kernel *kernel = function;
    int warps = (threads + 31) / 32, of_warp = (kernel->registers * 32 + 255) / 256 * 256;
    *count = smaller(BLOCKS_OF_ALL, THREADS_OF_ALL / (32 * warps));
    if (of_warp) *count = smaller(*count, REGISTERS / (of_warp * warps));
    *count = smaller(*count, SHARED_OF_ALL / (SHARED_OF_SYSTEM + kernel->static_shared + (int)dynamic));
    return OK;
}

/* Streams: what they are given is done when somebody waits for it */

typedef struct Event Event;
typedef struct {
    enum { COPY, RECORD, WAIT, LAUNCH } kind;
    void *target, *source;
    size_t size;
    Event *event;
    long record; /* the event's, when this began to wait */
    Kernel *kernel;
    int64_t *values;
} Work;
typedef struct { int is_alive; long done, given; Work work[MANY]; } Stream;
struct Event { int is_alive; Stream *stream; long record; };

static Stream *streams[64]; /* the first: the null stream */
static int num_streams;

static Stream *stream_of(void *handle)
{
    if (!num_streams) { streams[0] = calloc(1, sizeof(Stream)); streams[0]->is_alive = 1; num_streams = 1; }
    if ((uintptr_t)handle < 16) return streams[0]; /* legacy and per thread */
    for (int i = 1; i < num_streams; i++)
        if (streams[i] == handle && streams[i]->is_alive) return streams[i];
    return 0;
}

static void run_until(Stream *stream, long end)
{
    while (stream->done < end) {
        Work *work = &stream->work[stream->done++ % MANY];
        if (work->kind == COPY) memcpy(work->target, work->source, work->size);
        if (work->kind == WAIT && work->event->stream) run_until(work->event->stream, work->record);
        if (work->kind == LAUNCH) { run_kernel(work->kernel, work->values); free(work->values); }
    }
}
static void run_all(void) { for (int i = 0; i < num_streams; i++) run_until(streams[i], streams[i]->given); }

/* The null stream waits for all others, and they wait for it. */
static Result give(void *handle, Work work)
{
    Stream *stream = stream_of(handle);
    if (!stream) return refuse(BAD_HANDLE, "no such stream", (intptr_t)handle);
    if (stream == streams[0])
        run_all();
    else
        run_until(streams[0], streams[0]->given);
    if (stream->given - stream->done == MANY) run_until(stream, stream->given);
    stream->work[stream->given++ % MANY] = work;
    return OK;
}
#define LOCKED(call) \
    do { IN_CONTEXT; pthread_mutex_lock(&lock); Result result = call; pthread_mutex_unlock(&lock); return result; } while (0)

static Result now(void) { run_all(); return OK; }
static Result free_memory(Pointer pointer)
{
    run_all();
    for (int i = 0; i < MANY; i++)
        if (memory[i].host && ((Pointer)memory[i].host | memory[i].kind) == pointer) {
            free(memory[i].host);
            memory[i].host = 0;
            return OK;
        }
    return refuse(INVALID, "no such memory", pointer);
}
Result cuMemFree(Pointer pointer) { LOCKED(free_memory(pointer)); }
Result cuMemFreeHost(void *pointer) { LOCKED(free_memory((Pointer)pointer | MAPPED)); }

static Result copy(void *host, Pointer device, size_t size, int is_inwards, void *stream, int is_async)
{
    char *place = device & DEVICE ? place_of(device, size) : 0;
    if (!place) return refuse(INVALID, "a copy beyond its memory", size);
    Work work = {COPY, is_inwards ? place : host, is_inwards ? host : place, size};
    Result result = give(is_async ? stream : 0, work);
    if (!result && !is_async) run_all();
    return result;
}
Result cuMemcpyHtoD(Pointer d, const void *h, size_t n) { LOCKED(copy((void *)h, d, n, 1, 0, 0)); }
Result cuMemcpyDtoH(void *h, Pointer d, size_t n) { LOCKED(copy(h, d, n, 0, 0, 0)); }
Result cuMemcpyHtoDAsync(Pointer d, const void *h, size_t n, void *s) { LOCKED(copy((void *)h, d, n, 1, s, 1)); }
Result cuMemcpyDtoHAsync(void *h, Pointer d, size_t n, void *s) { LOCKED(copy(h, d, n, 0, s, 1)); }
static Result copy_between(Pointer to, Pointer from, size_t size, void *stream)
{
    char *target = place_of(to, size), *source = place_of(from, size);
    if (!target || !source) return refuse(INVALID, "a copy beyond its memory", size);
    return give(stream, (Work){COPY, target, source, size});
}
Result cuMemcpyDtoD(Pointer to, Pointer from, size_t n) { LOCKED(copy_between(to, from, n, 0)); }
Result cuMemcpyDtoDAsync(Pointer to, Pointer from, size_t n, void *s) { LOCKED(copy_between(to, from, n, s)); }

Result cuStreamCreate(void **stream, unsigned flags)
{
    IN_CONTEXT;
    pthread_mutex_lock(&lock);
    stream_of(0);
    int place = 1;
    while (place < num_streams && streams[place]->is_alive) place++;
    Result result = place == 64 ? refuse(NO_MEMORY, "streams that nobody has ended", place) : OK;
    if (!result) {
        num_streams = place == num_streams ? place + 1 : num_streams;
        *stream = streams[place] = calloc(1, sizeof(Stream)); /* an old one may have events */
        streams[place]->is_alive = 1;
    }
    pthread_mutex_unlock(&lock);
    return result;
}
Result cuStreamGetCtx(void *stream, void **context) { IN_CONTEXT; *context = &the_context; return OK; }
Result cuStreamGetCtx_v2(void *stream, void **context, void **green) { *green = 0; return cuStreamGetCtx(stream, context); }
static Result end_stream(void *handle)
{
    Stream *stream = stream_of(handle);
    if (!stream) return refuse(BAD_HANDLE, "no such stream", (intptr_t)handle);
    run_until(stream, stream->given);
    stream->is_alive = stream == streams[0];
    return OK;
}
Result cuStreamDestroy(void *stream) { LOCKED(end_stream(stream)); }
static Result finish_stream(void *handle)
{
    Stream *stream = stream_of(handle);
    if (!stream) return refuse(BAD_HANDLE, "no such stream", (intptr_t)handle);
    run_until(stream, stream->given);
    return OK;
}
Result cuStreamSynchronize(void *stream) { LOCKED(finish_stream(stream)); }
Result cuCtxSynchronize(void) { LOCKED(now()); }

Result cuEventCreate(void **event, unsigned flags)
{
    IN_CONTEXT;
    *event = calloc(1, sizeof(Event));
    ((Event *)*event)->is_alive = 1;
    return OK;
}
Result cuEventDestroy(void *event) { ((Event *)event)->is_alive = 0; return OK; } /* kept: others may wait for it */
static Result record(Event *event, void *handle)
{
    if (!event->is_alive) return refuse(BAD_HANDLE, "no such event", 0);
    Result result = give(handle, (Work){RECORD});
    event->stream = stream_of(handle);
    event->record = result ? 0 : event->stream->given;
    return result;
}
Result cuEventRecord(void *event, void *stream) { LOCKED(record(event, stream)); }
static Result wait_event(void *stream, Event *event)
{
    if (!event->is_alive) return refuse(BAD_HANDLE, "no such event", 0);
    return give(stream, (Work){WAIT, .event = event, .record = event->record});
}
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { LOCKED(wait_event(stream, event)); }
static Result finish_event(Event *event)
{
    if (!event->is_alive) return refuse(BAD_HANDLE, "no such event", 0);
    if (event->stream) run_until(event->stream, event->record);
    return OK;
}
Result cuEventSynchronize(void *event) { LOCKED(finish_event(event)); }
Result cuEventQuery(void *event) { return OK; }

/* Launches */

static Result launch(Kernel *kernel, const unsigned *grid, const unsigned *block, unsigned dynamic, void *stream,
                     void **parameters, int is_together)
{
    unsigned threads = block[0] * block[1] * block[2];
    if (!grid[0] || grid[0] > 2147483647u) return refuse(INVALID, "blocks in x", grid[0]);
    if (!grid[1] || grid[1] > 65535) return refuse(INVALID, "blocks in y", grid[1]);
    if (!grid[2] || grid[2] > 65535) return refuse(INVALID, "blocks in z", grid[2]);
    if (!threads || threads > (unsigned)kernel->threads) return refuse(INVALID, "threads of a block", threads);
    if (dynamic > (unsigned)kernel->dynamic_shared || dynamic + kernel->static_shared > SHARED_OPTIN)
        return refuse(INVALID, "shared memory of a block", dynamic);
    int together;
    cuOccupancyMaxActiveBlocksPerMultiprocessor(&together, kernel, threads, dynamic);
    if (!together) return refuse(TOO_MANY_RESOURCES, "no block fits a multiprocessor", threads);
    long long blocks = (long long)grid[0] * grid[1] * grid[2];
    if (is_together && blocks > (long long)together * MULTIPROCESSORS)
        return refuse(TOO_MANY_TOGETHER, "blocks of a cooperative launch", blocks);

    int count = kernel->num_parameters;
    int64_t *values = malloc(8 * (count + 1));
    for (int i = 0; i < count; i++) values[i] = *(int64_t *)parameters[i];
    for (int i = 0; i < count; i++)
        /* An array: its size and that of an element stand before its address. */
        if (values[i] & (DEVICE | MAPPED) && values[i] > 0 && !place_of(values[i], i < 2 ? 1 : values[i - 1] * values[i - 2])) {
            free(values);
            return refuse(ILLEGAL_ADDRESS, "an argument beyond its memory", i);
        }
    return give(stream, (Work){LAUNCH, .kernel = kernel, .values = values});
}
Result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **parameters, void **extra)
{
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    LOCKED(launch(f, grid, block, shared, stream, parameters, 0));
}
Result cuLaunchCooperativeKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                 unsigned bz, unsigned shared, void *stream, void **parameters)
{
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    LOCKED(launch(f, grid, block, shared, stream, parameters, 1));
}
typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; void *stream; void *attributes; unsigned count; } Config;
Result cuLaunchKernelEx(const Config *c, void *f, void **parameters, void **extra)
{
    const struct { int id; char pad[4]; int value; char rest[60]; } *attribute = c->attributes;
    int is_together = 0;
    for (unsigned i = 0; i < c->count; i++) is_together |= attribute[i].id == 2 && attribute[i].value;
    unsigned grid[] = {c->gx, c->gy, c->gz}, block[] = {c->bx, c->by, c->bz};
    LOCKED(launch(f, grid, block, c->shared, c->stream, parameters, is_together));
}

Result cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_OF_THE_FAKE_DRIVER"; return OK; }
Result cuGetErrorString(int error, const char **text) { *text = "the fake driver has said why"; return OK; }
Result cuModuleGetLoadingMode(int *mode) { *mode = 2; return OK; }

Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    Dl_info own;
    dladdr((void *)cuInit, &own);
    void *library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = dlsym(library, !strcmp(name, "cuGetProcAddress") ? "cuGetProcAddress_v2" : name);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
