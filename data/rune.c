#include "data/rune.h"

#include <stdint.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "base/memory.h"

struct range {
    unsigned first, last;
};

/* Assigned after the Unicode that utf8proc may know. */
static const struct range young_letters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D4A, 0x10D65},
    {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E},
    {0x11390, 0x113B5}, {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0},
    {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED},
    {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D},
};
static const struct range young_numbers[] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA},
};
static const struct range young_digits[] = {{0x11DE0, 0x11DE9}, {0x16FF4, 0x16FF6}};
static const struct range young_marks[] = {
    {0x897, 0x897},     {0x10D69, 0x10D6D}, {0x10EFC, 0x10EFC}, {0x113B8, 0x113C0}, {0x113C2, 0x113C2},
    {0x113C5, 0x113C5}, {0x113C7, 0x113CA}, {0x113CC, 0x113D0}, {0x113D2, 0x113D2}, {0x113E1, 0x113E2},
    {0x11F5A, 0x11F5A}, {0x1611E, 0x1612F}, {0x1E5EE, 0x1E5EF},
};

/* Word characters that are neither letter, mark, decimal digit nor connector: circled and squared letters, joiners. */
static const struct range word_others[] = {
    {0x200C, 0x200D}, {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189},
};

static const struct range spaces[] = {
    {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
};

/* The conjoining vowels and finals of Hangul, which compose by arithmetic. */
static const struct range hangul_tails[] = {{0x1161, 0x1175}, {0x11A8, 0x11C2}};

/* Marks, and the one tail of a composition, that came after Unicode 9. */
static const struct range young_composing[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

static void mark(struct runes *r, const struct range *list, size_t count, unsigned set, unsigned cleared) {
    for (size_t i = 0; i < count; i++)
        for (unsigned c = list[i].first; c <= list[i].last; c++)
            r->classes[c] = (unsigned char)((r->classes[c] & ~cleared) | set);
}

static unsigned class_of(const utf8proc_property_t *p) {
    switch (p->category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return RUNE_LETTER | RUNE_WORD;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
        return RUNE_NUMBER | RUNE_DIGIT | RUNE_WORD;
    case UTF8PROC_CATEGORY_NO:
        return RUNE_NUMBER | RUNE_DIGIT;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC:
        return RUNE_WORD;
    default:
        return 0;
    }
}

/* Everything that a canonical decomposition has after its first code point may compose with what stands before it; a
 * code point that is not the composition of its own decomposition changes. */
static void mark_composition(struct runes *r, unsigned rune) {
    enum { LONGEST = 18 };
    utf8proc_int32_t parts[LONGEST];
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)rune, parts, LONGEST, UTF8PROC_DECOMPOSE, NULL);
    if (n < 1 || n > LONGEST || (n == 1 && parts[0] == (utf8proc_int32_t)rune)) return;
    for (utf8proc_ssize_t i = 1; i < n; i++)
        if (parts[i] >= 0 && parts[i] < RUNE_TABLE) r->classes[parts[i]] |= RUNE_UNSURE;
    n = utf8proc_normalize_utf32(parts, n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (n != 1 || parts[0] != (utf8proc_int32_t)rune) r->classes[rune] |= RUNE_UNSURE;
}

struct runes *runes_new(void) {
    struct runes *r = mem_alloc(sizeof *r);
    for (unsigned c = 0; c < RUNE_TABLE; c++) {
        const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)c);
        if (p->category == UTF8PROC_CATEGORY_CN) continue;
        r->classes[c] |= (unsigned char)class_of(p);
        if (p->combining_class) r->classes[c] |= RUNE_UNSURE;
        if (p->decomp_seqindex != UINT16_MAX && p->decomp_type == 0) mark_composition(r, c);
    }
    mark(r, young_letters, COUNT(young_letters), RUNE_LETTER | RUNE_WORD, RUNE_NUMBER);
    mark(r, young_numbers, COUNT(young_numbers), RUNE_NUMBER | RUNE_DIGIT, RUNE_LETTER);
    mark(r, young_digits, COUNT(young_digits), RUNE_DIGIT, 0);
    mark(r, young_marks, COUNT(young_marks), RUNE_WORD, 0);
    mark(r, word_others, COUNT(word_others), RUNE_WORD, 0);
    mark(r, spaces, COUNT(spaces), RUNE_SPACE, 0);
    mark(r, hangul_tails, COUNT(hangul_tails), RUNE_UNSURE, 0);
    mark(r, young_composing, COUNT(young_composing), RUNE_YOUNG, RUNE_UNSURE);
    return r;
}

size_t rune_before(const char *s, size_t at) {
    do at--;
    while (at > 0 && ((unsigned char)s[at] & 0xC0) == 0x80);
    return at;
}

size_t rune_skip_space(const struct runes *r, const char *s, size_t n, size_t at) {
    while (at < n) {
        int len;
        if (!(rune_classes(r, utf8_rune(s + at, &len)) & RUNE_SPACE)) break;
        at += (size_t)len;
    }
    return at;
}

size_t rune_space_before(const struct runes *r, const char *s, size_t at) {
    while (at > 0) {
        int len;
        size_t before = rune_before(s, at);
        if (!(rune_classes(r, utf8_rune(s + before, &len)) & RUNE_SPACE)) break;
        at = before;
    }
    return at;
}

/* The first code point from `at` on that is unsure, or n. Below U+0300 all are sure. */
static size_t find_unsure(const struct runes *r, const char *s, size_t n, size_t at) {
    while (at < n) {
        if ((unsigned char)s[at] < 0xCC) {
            at++;
            continue;
        }
        int len;
        if (rune_classes(r, utf8_rune(s + at, &len)) & RUNE_UNSURE) return at;
        at += (size_t)len;
    }
    return n;
}

bool rune_composed(const struct runes *r, const char *s, size_t n) { return find_unsure(r, s, n, 0) == n; }

static size_t skip_unsure(const struct runes *r, const char *s, size_t n, size_t at) {
    while (at < n) {
        int len;
        if (!(rune_classes(r, utf8_rune(s + at, &len)) & RUNE_UNSURE)) break;
        at += (size_t)len;
    }
    return at;
}

/* A code point that is sure is a border: nothing before it takes part in composing it or what follows. So each run of
 * unsure ones is composed with the one code point before it, unless that is young and so would be taken for a mark. */
void rune_compose(const struct runes *r, const char *s, size_t n, struct text *out) {
    size_t done = 0;
    while (done < n) {
        size_t from = find_unsure(r, s, n, done), to = skip_unsure(r, s, n, from);
        if (from > done && from < n) {
            int len;
            size_t base = rune_before(s, from);
            if (!(rune_classes(r, utf8_rune(s + base, &len)) & RUNE_YOUNG)) from = base;
        }
        text_add_n(out, s + done, from - done);
        if (from < to) {
            utf8proc_uint8_t *span = NULL;
            utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s + from, (utf8proc_ssize_t)(to - from),
                                                &span, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
            if (len >= 0) text_add_n(out, (const char *)span, (size_t)len);
            free(span);
        }
        done = to;
    }
}
