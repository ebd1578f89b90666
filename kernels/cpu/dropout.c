#include "kernels/cpu/dropout.h"

#include <math.h>

#include "kernels/cpu/philox.h"
#include "kernels/cpu/span.h"

enum { BLOCK = 4 }; // words that are made together

void dropout_line(float *y, const float *x, const struct dropout *d, int64_t at, int64_t n) {
    uint32_t words[CHUNK + 64], threshold = (uint32_t)ceil((double)d->p * 0x1p32);
    float scale = (float)(1 / (1 - (double)d->p));
    for (int64_t done = 0; done < n; done += CHUNK - BLOCK) {
        int64_t first = d->first + at + done, skip = first % BLOCK, rest = n - done;
        int count = rest < CHUNK - BLOCK ? (int)rest : CHUNK - BLOCK;
        philox_words(d->seed, d->stream, first - skip, words, count + (int)skip);
        const uint32_t *w = words + skip;
        const float *from = x + done;
        float *to = y + done;
#pragma omp simd
        for (int i = 0; i < count; i++) to[i] = w[i] >= threshold ? from[i] * scale : 0.0f;
    }
}
