/* Runs an image of `neon_program.py` on 64-bit ARM, and writes the image as it is then. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int64_t word;

extern word srnn_step(word, word, word, word, word);
extern word srnn_chunk(word, word, word, word, word);
extern void srnn_cover_0(void), srnn_cover_1(void), srnn_cover_2(void);
extern void srnn_blocks_0(void), srnn_blocks_1(void), srnn_blocks_2(void);

/* Compiled code names these for errors that it cannot meet here. */
void NRT_incref(void *p) { if (p) abort(); }
void NRT_decref(void *p) { if (p) abort(); }
#define NEVER(name) void *name(void) { abort(); }
NEVER(NRT_Free) NEVER(NRT_MemInfo_call_dtor) NEVER(numba_gil_ensure) NEVER(numba_gil_release)
NEVER(numba_unpickle) NEVER(numba_do_raise) NEVER(numba_runtime_build_excinfo_struct)
NEVER(PyUnicode_FromString) NEVER(PyErr_WriteUnraisable) NEVER(Py_DecRef) NEVER(PyErr_Clear)
NEVER(PyBytes_FromStringAndSize) NEVER(PyErr_SetString) NEVER(PyErr_SetNone)
char PyExc_StopIteration, PyExc_SystemError, PyExc_RuntimeError;

static void get(FILE *file, void *to, size_t size) {
    if (fread(to, 1, size, file) != size) { perror("image"); exit(1); }
}

int main(int argc, char **argv) {
    void (*covers[])(void) = {srnn_cover_0, srnn_cover_1, srnn_cover_2};
    void (*blocks[])(void) = {srnn_blocks_0, srnn_blocks_1, srnn_blocks_2};
    word head[6]; /* bytes, addresses, calls, where the covers' addresses go (or 0), precision */
    FILE *file = fopen(argv[1], "rb");
    if (argc != 3 || !file) { perror("image"); return 1; }
    get(file, head, sizeof head);
    word *moved = malloc(8 * head[1] + 1), (*calls)[6] = malloc(48 * head[2]);
    get(file, moved, 8 * head[1]);
    get(file, calls, 48 * head[2]);
    char *image = aligned_alloc(64, (head[0] + 127) / 64 * 64);
    get(file, image, head[0]);
    fclose(file);
    for (word i = 0; i < head[1]; i++) *(word *)(image + moved[i]) += (word)image;
    *(word *)(image + head[3]) = (word)covers[head[5]];
    if (head[4]) *(word *)(image + head[4]) = (word)blocks[head[5]];
    uint64_t flush_to_zero = 1 << 24;
    __asm__ volatile("msr fpcr, %0" : : "r"(flush_to_zero));
    word base = (word)image;
    for (word i = 0; i < head[2]; i++) {
        word *a = calls[i];
        if (a[0] == 0) srnn_step(base + a[1], base + a[2], base + a[3], base + a[4], a[5]);
        else srnn_chunk(base + a[1], base + a[2], base + a[3], base + a[4], a[5]);
    }
    file = fopen(argv[2], "wb");
    if (!file || fwrite(image, 1, head[0], file) != (size_t)head[0] || fclose(file)) return 1;
    return 0;
}
