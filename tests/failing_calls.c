/* Preloaded, has system calls fail as LATHE_FAIL says: "call:errno:part of the path:from:until", more
   after commas. Calls whose path has the part are counted from 1; those from..until fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 16 };
static struct rule { char call[16], part[128]; int error; long from, until, seen; } rules[MOST];
static int n_rules = -1;

static void read_rules(void) {
    n_rules = 0;
    const char *text = getenv("LATHE_FAIL");
    while (text && *text && n_rules < MOST) {
        struct rule *r = &rules[n_rules++];
        sscanf(text, "%15[^:]:%d:%127[^:]:%ld:%ld", r->call, &r->error, r->part, &r->from, &r->until);
        text = strchr(text, ',');
        if (text) text++;
    }
}

static int fails(const char *call, const char *path) {
    if (n_rules < 0) read_rules();
    for (int i = 0; i < n_rules; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->call, call) || !strstr(path, r->part)) continue;
        long seen = __atomic_add_fetch(&r->seen, 1, __ATOMIC_SEQ_CST);
        if (seen < r->from || seen > r->until) continue;
        errno = r->error;
        return 1;
    }
    return 0;
}

static int fails_of(const char *call, int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int before = errno;
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = before;
    if (n < 0) return 0;
    path[n] = 0;
    return fails(call, path);
}

typedef int on_two(int, int);
typedef int on_one(int);
typedef ssize_t on_data(int, const void *, size_t);
typedef int on_names(const char *, const char *);
#define REAL(name, type) static type *real; if (!real) real = (type *)dlsym(RTLD_NEXT, name)

int flock(int descriptor, int operation) {
    REAL("flock", on_two);
    return fails_of("flock", descriptor) ? -1 : real(descriptor, operation);
}

int fsync(int descriptor) {
    REAL("fsync", on_one);
    struct stat about;
    int is_folder = fstat(descriptor, &about) == 0 && S_ISDIR(about.st_mode);
    return fails_of(is_folder ? "fsync_folder" : "fsync", descriptor) ? -1 : real(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL("write", on_data);
    return fails_of("write", descriptor) ? -1 : real(descriptor, data, size);
}

int rename(const char *from, const char *to) {
    REAL("rename", on_names);
    return fails("rename", to) ? -1 : real(from, to);
}
