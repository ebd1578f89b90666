#include "data/mixture.h"

#include <math.h>

/* MT19937 as Python seeds and reads it (Matsumoto and Nishimura, 1998). */
enum { WORDS = 624, FAR = 397, PYTHON_SEED = 42 };

struct twister {
    uint32_t word[WORDS];
    int next;
};

static void twister_fill(struct twister *t, uint32_t seed) {
    t->word[0] = seed;
    for (int i = 1; i < WORDS; i++) t->word[i] = 1812433253u * (t->word[i - 1] ^ t->word[i - 1] >> 30) + (uint32_t)i;
    t->next = WORDS;
}

/* init_by_array with a key of one word. */
static void twister_seed(struct twister *t, uint32_t key) {
    twister_fill(t, 19650218u);
    uint32_t *w = t->word;
    int i = 1;
    for (int k = 0; k < WORDS; k++) {
        w[i] = (w[i] ^ (w[i - 1] ^ w[i - 1] >> 30) * 1664525u) + key;
        if (++i == WORDS) w[0] = w[WORDS - 1], i = 1;
    }
    for (int k = 0; k < WORDS - 1; k++) {
        w[i] = (w[i] ^ (w[i - 1] ^ w[i - 1] >> 30) * 1566083941u) - (uint32_t)i;
        if (++i == WORDS) w[0] = w[WORDS - 1], i = 1;
    }
    w[0] = 0x80000000u;
}

static void twister_turn(struct twister *t) {
    for (int i = 0; i < WORDS; i++) {
        uint32_t y = (t->word[i] & 0x80000000u) | (t->word[(i + 1) % WORDS] & 0x7FFFFFFFu);
        t->word[i] = t->word[(i + FAR) % WORDS] ^ y >> 1 ^ (y & 1 ? 0x9908B0DFu : 0);
    }
    t->next = 0;
}

static uint32_t twister_word(struct twister *t) {
    if (t->next == WORDS) twister_turn(t);
    uint32_t y = t->word[t->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680u;
    y ^= y << 15 & 0xEFC60000u;
    return y ^ y >> 18;
}

/* 0 .. n-1 as Python's _randbelow: as many bits as n has, drawn again until below n. */
static int64_t twister_below(struct twister *t, int64_t n) {
    int bits = 0;
    while (n >> bits) bits++;
    int64_t x;
    do x = twister_word(t) >> (32 - bits);
    while (x >= n);
    return x;
}

void mixture_shuffle(int64_t *order, int64_t n) {
    struct twister t;
    twister_seed(&t, PYTHON_SEED);
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = twister_below(&t, i + 1), kept = order[i];
        order[i] = order[j], order[j] = kept;
    }
}

int64_t mixture_lengths(int64_t *shown, const int64_t *rows, size_t count, bool balancing) {
    int64_t total = 0, sum = 0;
    double roots = 0;
    for (size_t i = 0; i < count; i++) total += rows[i], roots += sqrt((double)rows[i]);
    for (size_t i = 0; i < count; i++) {
        shown[i] = rows[i];
        if (balancing && rows[i]) shown[i] = (int64_t)((double)total * fmin(sqrt((double)rows[i]) / roots * 1.1, 1.0));
        sum += shown[i];
    }
    return sum;
}
