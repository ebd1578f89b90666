#include "lora/tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

struct tensorboard {
    char *path;
    int fd;
};

uint32_t crc32c(const void *data, size_t n) {
    const unsigned char *p = data;
    uint32_t c = 0xFFFFFFFF;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0x82F63B78u : 0);
    }
    return ~c;
}

uint32_t crc32c_masked(const void *data, size_t n) {
    uint32_t c = crc32c(data, n);
    return (c >> 15 | c << 17) + 0xA282EAD8u;
}

static void add_little(struct text *t, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) text_add_char(t, (char)(v >> (8 * i) & 0xFF));
}

static void add_varint(struct text *t, uint64_t v) {
    for (; v > 127; v >>= 7) text_add_char(t, (char)((v & 0x7F) | 0x80));
    text_add_char(t, (char)v);
}

/* Field numbers and wire types of the messages; a key is number << 3 | wire type. */
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_FILE_VERSION = 3, EVENT_SUMMARY = 5 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2 };

static void add_key(struct text *t, int field, int wire) { add_varint(t, (uint64_t)(field << 3 | wire)); }

static void add_bytes(struct text *t, int field, const char *s, size_t n) {
    add_key(t, field, BYTES);
    add_varint(t, n);
    text_add_n(t, s, n);
}

static void add_time(struct text *event, double wall_time) {
    uint64_t bits;
    memcpy(&bits, &wall_time, sizeof bits);
    add_key(event, EVENT_WALL_TIME, FIXED64);
    add_little(event, bits, 8);
}

static void add_scalar(struct text *summary, const struct scalar *s) {
    struct text value = {0};
    float x = (float)s->value;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    add_bytes(&value, VALUE_TAG, s->tag, strlen(s->tag));
    add_key(&value, VALUE_SIMPLE, FIXED32);
    add_little(&value, bits, 4);
    add_bytes(summary, SUMMARY_VALUE, value.data, value.len);
    text_free(&value);
}

/* length, its checksum, the event, its checksum */
static enum status write_record(struct tensorboard *t, const struct text *event, struct err *e) {
    struct text record = {0};
    add_little(&record, event->len, 8);
    add_little(&record, crc32c_masked(record.data, 8), 4);
    text_add_n(&record, event->data, event->len);
    add_little(&record, crc32c_masked(event->data, event->len), 4);
    for (size_t at = 0; at < record.len && e->code == ST_OK;) {
        ssize_t n = write(t->fd, record.data + at, record.len - at);
        if (n < 0 && errno != EINTR) err_set(e, ST_FAIL, "%s: cannot write (%s)", t->path, strerror(errno));
        if (n > 0) at += (size_t)n;
    }
    text_free(&record);
    return e->code;
}

/* A name that no file has: events.out.tfevents.TIME.HOST.PID.COUNT */
static int create(struct tensorboard *t, const char *dir, double wall_time, struct err *e) {
    char host[256] = "localhost";
    if (gethostname(host, sizeof host - 1) != 0) snprintf(host, sizeof host, "localhost");
    for (char *p = host; *p; p++)
        if (*p == '/') *p = '-';
    for (int count = 0; count < 1000; count++) {
        char *name =
            mem_format("events.out.tfevents.%010lld.%s.%ld.%d", (long long)wall_time, host, (long)getpid(), count);
        free(t->path);
        t->path = path_join(dir, name);
        free(name);
        int fd = open(t->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (fd >= 0) return fd;
        if (errno != EEXIST) break;
    }
    err_set(e, ST_FAIL, "%s: cannot make the event file (%s)", t->path, strerror(errno));
    return -1;
}

struct tensorboard *tensorboard_open(const char *dir, double wall_time, struct err *e) {
    if (dir_make(dir, e) != ST_OK) return NULL;
    struct tensorboard *t = mem_alloc(sizeof *t);
    t->fd = create(t, dir, wall_time, e);
    if (t->fd >= 0) {
        struct text event = {0};
        add_time(&event, wall_time);
        add_bytes(&event, EVENT_FILE_VERSION, "brain.Event:2", 13);
        write_record(t, &event, e);
        text_free(&event);
    }
    if (e->code == ST_OK) return t;
    tensorboard_close(t);
    return NULL;
}

const char *tensorboard_path(const struct tensorboard *t) { return t->path; }

enum status tensorboard_write(struct tensorboard *t, int64_t step, double wall_time, const struct scalar *scalars,
                              size_t count, struct err *e) {
    struct text event = {0}, summary = {0};
    add_time(&event, wall_time);
    add_key(&event, EVENT_STEP, VARINT);
    add_varint(&event, (uint64_t)step);
    for (size_t i = 0; i < count; i++) add_scalar(&summary, &scalars[i]);
    add_bytes(&event, EVENT_SUMMARY, text_str(&summary), summary.len);
    write_record(t, &event, e);
    text_free(&summary);
    text_free(&event);
    return e->code;
}

void tensorboard_close(struct tensorboard *t) {
    if (!t) return;
    if (t->fd >= 0) close(t->fd);
    free(t->path);
    free(t);
}
