/* Machine code as the fake driver sees it: what limits a kernel's launch is in the sections of its
   ELF file, and a few kernels do something. */
#ifndef FAKE_CODE_H
#define FAKE_CODE_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE (1ull << 62) /* in every address of device memory */

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

static void run_kernel(Kernel *kernel, int64_t *values)
{
#define ARRAY(type, k) ((type *)(values[7 * (k) + 4] & ~DEVICE))
#define SIZE(k) values[7 * (k) + 2]
    const char *name = kernel->name;
    if (strstr(name, "start_rows")) {
        for (int64_t i = 0; i < SIZE(1); i++)
            memcpy(ARRAY(float, 0) + ARRAY(int32_t, 1)[i] * SIZE(2), ARRAY(float, 2), 4 * SIZE(2));
    } else if (strstr(name, "move_rows")) {
        int64_t size = values[21], inwards = values[22];
        for (int64_t i = 0; i < SIZE(1); i++) {
            float *row = ARRAY(float, 0) + ARRAY(int32_t, 1)[i] * size, *other = ARRAY(float, 2) + i * size;
            memcpy(inwards ? row : other, inwards ? other : row, 4 * size);
        }
    } else if (strstr(name, "6finish") || strstr(name, "step_persistent")) {
        int is_persistent = !strstr(name, "6finish");
        int64_t *plan = ARRAY(int64_t, 0), num_inputs = plan[2], num_outputs = plan[3];
        int64_t *numbers = values + (is_persistent ? 7 * 8 : 7 * 6);
        int64_t num_rows = numbers[0], num_steps = numbers[is_persistent ? 1 : 2];
        int64_t first = is_persistent ? 0 : numbers[1], end = is_persistent ? num_steps : first + 1;
        int32_t *slots = ARRAY(int32_t, 4);
        float *x = (float *)slots + (num_rows + 3) / 4 * 4, *y = ARRAY(float, is_persistent ? 7 : 5);
        for (int64_t t = first; t < end; t++)
            for (int64_t row = 0; row < num_rows; row++) {
                float *state = ARRAY(float, 2) + slots[row] * plan[0];
                *state += x[(row * num_steps + t) * num_inputs];
                for (int64_t j = 0; j < num_outputs; j++)
                    y[(row * num_steps + t) * num_outputs + j] = *state + j;
            }
    }
}

#endif
