/* How calls reach the device. What ops ask for waits here, up to 256 calls at a time, and goes on its way as one chain.
 * A chain whose like went before is one CUDA graph: what differs (pointers, sizes, numbers) is put into its nodes, and
 * the host launches once instead of once for each call. So the steps of a training, or the tokens of an answer, whose
 * shapes come again cost the host little, and nobody above has to say which those are.
 *
 * Two chains are alike when they come as many chains behind the last word of the host (an upload, a download, a wait),
 * with the same kernels in the same order, and all else the same to the byte. The first goes call by call, the second
 * makes the graph. With CUDA_LAUNCH_BLOCKING=1 in the environment every call goes at once, so that a failure shows in
 * its op. */
#ifndef KERNELS_CUDA_GRAPHS_CUH
#define KERNELS_CUDA_GRAPHS_CUH

#include "kernels/cuda/common.cuh"

struct graphs *graphs_new();
void graphs_free(struct graphs *g); // the device is done with them

/* A call that is not a kernel of ours: issue(be, of) gives it to the backend's stream, now or later, any number of
 * times. `bytes` bytes at `of` say all that it does, and are copied. */
void graphs_call(struct backend *be, const char *what, void (*issue)(struct backend *be, const void *of),
                 const void *of, size_t bytes);

/* All calls so far are in the stream. */
void graphs_flush(struct backend *be);

/* The same, and the host has its word: the chain that begins now is the first. */
void graphs_restart(struct backend *be);

/* Chains that went as graphs, since the beginning. */
int64_t graphs_launched(const struct backend *be);

#endif
