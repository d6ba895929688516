/* A disk that fails on command: preloaded (LD_PRELOAD) into a server by tests.faults.test_disk.
 *
 * While the file named by FAULTY_DISK exists, it says in one word what fails of what is written to
 * files named data.mdb or *.journal, and with which error number: "write 28", "sync 5", "meta 5",
 * "torn 28". A third word, "data.mdb" or ".journal", leaves it at these. `meta` is the page that makes a commit count (LMDB writes it through a descriptor of its own,
 * with O_DSYNC); `torn` writes half of what it is given before it fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int ends_with(const char *path, const char *end)
{
    size_t length = strlen(path), end_length = strlen(end);
    return length >= end_length && strcmp(path + length - end_length, end) == 0;
}

static int is_our_file(int file, const char *end)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 8)
        return 0;
    path[length] = 0;
    return ends_with(path, end) && (ends_with(path, "data.mdb") || ends_with(path, ".journal"));
}

/* Return the error number if this kind of call fails now, or 0. */
static int fault(int file, const char *kind)
{
    char wanted[16], end[16] = "";
    int number = 0, saved = errno;
    const char *name = getenv("FAULTY_DISK");
    FILE *control = name && is_our_file(file, "") ? fopen(name, "r") : NULL;
    if (control) {
        if (fscanf(control, "%15s %d %15s", wanted, &number, end) < 2 ||
            strcmp(wanted, kind) != 0 || !is_our_file(file, end))
            number = 0;
        fclose(control);
    }
    errno = saved;
    return number;
}

static int write_fault(int file, int *is_torn)
{
    int number;
    *is_torn = 0;
    if (fcntl(file, F_GETFL) & O_DSYNC)
        return fault(file, "meta");
    if ((number = fault(file, "torn")))
        *is_torn = 1;
    else
        number = fault(file, "write");
    return number;
}

static ssize_t fail(int number)
{
    errno = number;
    return -1;
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    int is_torn, number = write_fault(file, &is_torn);
    if (is_torn)
        REAL(pwrite)(file, data, size / 2, offset);
    return number ? fail(number) : REAL(pwrite)(file, data, size, offset);
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t offset)
{
    return pwrite(file, data, size, offset);
}

ssize_t write(int file, const void *data, size_t size)
{
    int is_torn, number = write_fault(file, &is_torn);
    if (is_torn)
        REAL(write)(file, data, size / 2);
    return number ? fail(number) : REAL(write)(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int num_parts)
{
    int is_torn, number = write_fault(file, &is_torn);
    if (is_torn)
        REAL(writev)(file, parts, (num_parts + 1) / 2);
    return number ? fail(number) : REAL(writev)(file, parts, num_parts);
}

int fdatasync(int file)
{
    int number = fault(file, "sync");
    return number ? (int)fail(number) : REAL(fdatasync)(file);
}

int fsync(int file)
{
    int number = fault(file, "sync");
    return number ? (int)fail(number) : REAL(fsync)(file);
}
