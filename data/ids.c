#include <stdlib.h>

#include "base/memory.h"
#include "data/tokenizer.h"

static void reserve(struct ids *ids, size_t more) {
    if (ids->room - ids->len >= more) return;
    size_t room = ids->room ? ids->room * 2 : 64;
    if (room < ids->len + more) room = ids->len + more;
    ids->data = mem_resize(ids->data, room * sizeof *ids->data);
    ids->room = room;
}

void ids_add(struct ids *ids, int32_t id) {
    if (ids->len == ids->room) reserve(ids, 1);
    ids->data[ids->len++] = id;
}

void ids_repeat(struct ids *ids, size_t at, size_t n) {
    reserve(ids, n);
    for (size_t i = 0; i < n; i++) ids->data[ids->len + i] = ids->data[at + i];
    ids->len += n;
}

void ids_clear(struct ids *ids) { ids->len = 0; }

void ids_free(struct ids *ids) {
    free(ids->data);
    *ids = (struct ids){0};
}
