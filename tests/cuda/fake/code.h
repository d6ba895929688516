/* Machine code as the fake driver sees it: what limits a kernel's launch is in the sections of its
   ELF file, and a few kernels do something. */
#ifndef FAKE_CODE_H
#define FAKE_CODE_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE (1ull << 62) /* in every address of device memory */
#define MAPPED (1ull << 61) /* in every address by which a kernel reaches the host's memory */

enum { MAX_THREADS = 1024, SHARED = 49152 }; /* of a block; more shared memory has to be asked for */

typedef struct {
    const char *name;
    int threads, registers, static_shared, dynamic_shared, num_parameters;
} Kernel;
typedef struct { int num_kernels; Kernel kernels[64]; } Library;

static uint64_t number_at(const char *at, int bytes) { uint64_t n = 0; memcpy(&n, at, bytes); return n; }

static void read_info(Kernel *kernel, const char *at, size_t size)
{
    for (const char *end = at + size; at < end;) {
        int format = at[0], attribute = (unsigned char)at[1], value = number_at(at + 2, 2);
        at += 4;
        if (format != 4) continue;
        if (attribute == 0x05) /* the launch bounds */
            kernel->threads = number_at(at, 4) * number_at(at + 4, 4) * number_at(at + 8, 4);
        if (attribute == 0x17) kernel->num_parameters++;
        at += value;
    }
}

static void read_registers(Kernel *kernel, uint32_t symbol, const char *at, size_t size)
{
    for (const char *end = at + size; at < end;) {
        int format = at[0], attribute = (unsigned char)at[1], value = number_at(at + 2, 2);
        at += 4;
        if (format != 4) continue;
        if (attribute == 0x2f && number_at(at, 4) == symbol) kernel->registers = number_at(at + 4, 4);
        at += value;
    }
}

static int after(const char *name, const char *prefix, const char **rest)
{
    size_t n = strlen(prefix);
    *rest = name + n;
    return !strncmp(name, prefix, n);
}

/* Return the library in an ELF file, or null. */
static Library *read_library(const char *elf)
{
    const char *rest, *table = elf + number_at(elf + 0x28, 8);
    if (memcmp(elf, "\177ELF", 4)) return 0;
    int size = number_at(elf + 0x3a, 2), count = number_at(elf + 0x3c, 2);
    const char *names = elf + number_at(table + size * number_at(elf + 0x3e, 2) + 24, 8);
    Library *library = calloc(1, sizeof *library);
#define EACH_SECTION(section, name) \
    for (const char *section = table, *name; section < table + size * count \
         && (name = names + number_at(section, 4)); section += size)
    EACH_SECTION(section, name)
        if (after(name, ".nv.info.", &rest) && library->num_kernels < 64) {
            Kernel *kernel = &library->kernels[library->num_kernels++];
            kernel->name = strdup(rest);
            kernel->threads = MAX_THREADS;
            kernel->dynamic_shared = SHARED;
            read_info(kernel, elf + number_at(section + 24, 8), number_at(section + 32, 8));
        }
    for (Kernel *kernel = library->kernels; kernel < library->kernels + library->num_kernels; kernel++) {
        uint32_t symbol = 0;
        EACH_SECTION(section, name) {
            if (after(name, ".text.", &rest) && !strcmp(rest, kernel->name))
                symbol = number_at(section + 44, 4) & 0xffffff;
            if (after(name, ".nv.shared.", &rest) && !strcmp(rest, kernel->name))
                kernel->static_shared = number_at(section + 32, 8);
        }
        EACH_SECTION(section, name)
            if (!strcmp(name, ".nv.info"))
                read_registers(kernel, symbol, elf + number_at(section + 24, 8), number_at(section + 32, 8));
    }
    return library;
}

/* Words of a plan, and of a layer of it, as `streamrnn/kernels/cuda/plan.py` numbers them. */
enum { RECORD_SIZE, ROW_SIZE, WORK_SIZE, NUM_INPUTS, NUM_OUTPUTS, FEATURES, FIRST_LAYER = 12 };
enum { LAYER_ROW_SIZE, LAYER_WORK_SIZE, X_ROW_SIZE, X_OTHER, STATE = 8, OTHER, STATE_SIZE = 21, LAYER_OUTPUTS };

#define ARRAY(type, k) ((type *)(values[7 * (k) + 4] & ~(DEVICE | MAPPED)))
#define SIZE(k) values[7 * (k) + 2]

static void move_rows(int64_t *values)
{
    int64_t *plan = ARRAY(int64_t, 0), *layer = plan + plan[FIRST_LAYER], stride = values[28], inwards = values[29];
    for (int64_t i = 0; i < SIZE(2); i++) {
        int code = ARRAY(int32_t, 2)[i];
        float *row = ARRAY(float, 1) + (code >> 1) * plan[ROW_SIZE], *record = ARRAY(float, 3) + i * stride;
        memcpy(inwards ? row : record, inwards ? record : row, 4 * plan[RECORD_SIZE]);
        if (!inwards && code & 1) record[layer[STATE]] = row[layer[STATE] + layer[OTHER]];
    }
}

static void write_features(int64_t *values)
{
    int64_t *plan = ARRAY(int64_t, 0), *numbers = values + 7 * 7;
    for (int64_t row = 0; row < numbers[2]; row++)
        ARRAY(float, 3)[row * plan[WORK_SIZE] + plan[FEATURES]] = ARRAY(float, 5)[numbers[0] + row * numbers[1]];
}

/* The first layer adds x to its h; the h of the others is their x. */
static void step_layer(int64_t *values)
{
    int64_t *layer = ARRAY(int64_t, 0), *numbers = values + 7 * 7, step = numbers[4];
    for (int64_t row = 0; row < numbers[5]; row++) {
        int code = ARRAY(int32_t, 5)[row], half = (code ^ step) & 1;
        float *h = ARRAY(float, 2) + (code >> 1) * layer[LAYER_ROW_SIZE] + layer[STATE];
        float value = ARRAY(float, 4)[numbers[0] + row * numbers[1] + (code >> 1) * layer[X_ROW_SIZE]
                                      + !half * layer[X_OTHER]];
        if (!layer[X_ROW_SIZE]) value += h[half * layer[OTHER]];
        if (layer[STATE_SIZE]) h[!half * layer[OTHER]] = value;
        for (int64_t j = 0; j < layer[LAYER_OUTPUTS]; j++)
            ARRAY(float, 6)[numbers[2] + row * numbers[3] + j] = value + j;
    }
}

static void step_persistent(int64_t *values)
{
    int64_t *plan = ARRAY(int64_t, 0), *layer = plan + plan[FIRST_LAYER], *numbers = values + 7 * 8;
    int64_t num_rows = numbers[0], num_steps = numbers[1], num_outputs = plan[NUM_OUTPUTS];
    for (int64_t row = 0; row < num_rows; row++) {
        int code = ARRAY(int32_t, 4)[row], half = (code ^ numbers[4]) & 1;
        float *h = ARRAY(float, 2) + (code >> 1) * plan[ROW_SIZE] + layer[STATE], value = h[half * layer[OTHER]];
        for (int64_t t = 0; t < num_steps; t++) {
            value += ARRAY(float, 5)[numbers[2] + row * numbers[3] + t * plan[NUM_INPUTS]];
            for (int64_t j = 0; j < num_outputs; j++)
                ARRAY(float, 7)[(row * num_steps + t) * num_outputs + j] = value + j;
        }
        h[((half ^ num_steps) & 1) * layer[OTHER]] = value;
    }
}

static void run_kernel(Kernel *kernel, int64_t *values)
{
    if (strstr(kernel->name, "move_rows")) move_rows(values);
    if (strstr(kernel->name, "write_features")) write_features(values);
    if (strstr(kernel->name, "step_layer")) step_layer(values);
    if (strstr(kernel->name, "step_persistent")) step_persistent(values);
}

#endif
