#include "base/rng.h"

#include <math.h>

#include "base/hash.h"

void rng_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (uint32_t)p1, c2 = n2, c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

uint32_t rng_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t block[4];
    rng_block(seed, stream, index / 4, block);
    return block[index % 4];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) { return rng_bits(seed, stream, index) * 0x1p-32; }

double rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t block[4];
    rng_block(seed, stream, index, block);
    double u = (block[0] + 0.5) * 0x1p-32, v = block[1] * 0x1p-32; // Box-Muller
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void rng_shuffle(uint64_t seed, uint64_t stream, int64_t *order, int64_t n) {
    for (int64_t i = 0; i < n; i++) order[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        uint32_t b[4];
        rng_block(seed, stream, (uint64_t)i, b);
        int64_t j = (int64_t)(((uint64_t)b[0] << 32 | b[1]) % (uint64_t)(i + 1));
        int64_t kept = order[i];
        order[i] = order[j], order[j] = kept;
    }
}

uint64_t rng_stream(const char *name) { return hash_text(HASH_START, name); }
