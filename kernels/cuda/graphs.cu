#include "kernels/cuda/graphs.cuh"

#include <stdlib.h>
#include <string.h>

extern "C" {
#include "base/memory.h"
}

enum { CHAIN_CALLS = 256, LEAST_CALLS = 8 }; // a shorter chain makes no graph
enum : size_t { CHAIN_BYTES = 96u << 10, ALIGNED = 16 };
enum { GRAPHS = 128, SEEN = 4096, FRESH = 4 * GRAPHS }; // a graph gives way to a new one when FRESH chains were not it

/* One call. Behind it in the chain lie `bytes` bytes: the arguments of a kernel, number i at at[i], or what `issue`
 * wants. */
struct alignas(ALIGNED) call {
    const char *what;   // the op
    const void *kernel; // NULL: issue does it
    void (*issue)(struct backend *be, const void *of);
    dim3 grid, block;
    uint32_t shared, bytes, count;
    uint16_t at[LAUNCH_ARGUMENTS];
};

struct chain {
    alignas(ALIGNED) char bytes[CHAIN_BYTES];
    size_t used;
    int count;
};

struct graph {
    uint64_t key; // 0: this place is free
    uint64_t last;
    cudaGraph_t graph; // as long as the rest: its nodes are what a change names
    cudaGraphExec_t exec;
    cudaGraphNode_t *nodes; // (count)
    char *calls;            // as the nodes hold them
    size_t used;
    int count;
};

struct graphs {
    struct chain chain; // that waits
    uint64_t likeness;  // hash of what its like must have the same
    uint64_t place;     // chains since the host's last word
    uint64_t flushed, launched;
    bool at_once; // nothing waits
    bool refused; // by the driver: chains go call by call
    uint64_t seen[SEEN];
    struct graph all[GRAPHS];
};

static struct graphs *graphs_of(struct backend *be) { return cuda_of(be)->graphs; }

int64_t graphs_launched(const struct backend *be) {
    return static_cast<int64_t>(reinterpret_cast<const struct cuda_backend *>(be)->graphs->launched);
}

static char *of_call(const struct call *c) { return const_cast<char *>(reinterpret_cast<const char *>(c + 1)); }

static const struct call *call_at(const char *bytes, size_t at) {
    return reinterpret_cast<const struct call *>(bytes + at);
}

static size_t room_of(const struct call *c) { return sizeof *c + c->bytes; }

static size_t aligned(size_t bytes) { return (bytes + ALIGNED - 1) / ALIGNED * ALIGNED; }

/* --- one by one -------------------------------------------------------------------------------------------------- */

/* Arguments as the driver takes them. */
static void addresses_of(const struct call *c, void *(&arguments)[LAUNCH_ARGUMENTS]) {
    for (uint32_t i = 0; i < c->count; i++) arguments[i] = of_call(c) + c->at[i];
}

/* Unasked, a block gets 48 KiB less what the kernel's own SHAREDs take. */
static cudaError_t allow_shared(const struct call *c) {
    if (c->shared == 0) return cudaSuccess;
    return cudaFuncSetAttribute(c->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(c->shared));
}

static void issue(struct backend *be, const struct call *c) {
    if (!c->kernel) {
        c->issue(be, of_call(c));
        return;
    }
    void *arguments[LAUNCH_ARGUMENTS];
    addresses_of(c, arguments);
    cudaError_t result = allow_shared(c);
    if (result == cudaSuccess)
        result = cudaLaunchKernel(c->kernel, c->grid, c->block, arguments, c->shared, cuda_of(be)->stream);
    cuda_check(be, result, c->what);
}

static void issue_all(struct backend *be, const struct chain *chain) {
    for (size_t at = 0; at < chain->used; at += room_of(call_at(chain->bytes, at)))
        if (be->err.code == ST_OK) issue(be, call_at(chain->bytes, at));
}

/* --- a graph ----------------------------------------------------------------------------------------------------- */

static void graph_clear(struct graph *g) {
    if (g->exec) cudaGraphExecDestroy(g->exec);
    if (g->graph) cudaGraphDestroy(g->graph);
    free(g->nodes), free(g->calls);
    memset(g, 0, sizeof *g);
}

/* The same of one that the device may still be at. */
static void graph_end(struct backend *be, struct graph *g) {
    cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "graph");
    graph_clear(g);
}

static cudaKernelNodeParams node_of(const struct call *c, void **arguments) {
    return {const_cast<void *>(c->kernel), c->grid, c->block, c->shared, arguments, nullptr};
}

/* What issue gives to the stream becomes a graph of its own, and that a node. */
static cudaError_t add_captured(struct backend *be, struct graph *g, const cudaGraphNode_t *behind,
                                const struct call *c) {
    cudaStream_t stream = cuda_of(be)->stream;
    cudaGraph_t part = nullptr;
    cudaError_t result = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    if (result != cudaSuccess) return result;
    c->issue(be, of_call(c));
    result = cudaStreamEndCapture(stream, &part);
    if (result == cudaSuccess)
        result = cudaGraphAddChildGraphNode(g->nodes + g->count, g->graph, behind, behind ? 1 : 0, part);
    if (part) cudaGraphDestroy(part);
    return result;
}

static cudaError_t add_node(struct backend *be, struct graph *g, const struct call *c) {
    const cudaGraphNode_t *behind = g->count ? g->nodes + g->count - 1 : nullptr;
    if (!c->kernel) return add_captured(be, g, behind, c);
    void *arguments[LAUNCH_ARGUMENTS];
    addresses_of(c, arguments);
    cudaKernelNodeParams n = node_of(c, arguments);
    cudaError_t result = allow_shared(c);
    if (result != cudaSuccess) return result;
    return cudaGraphAddKernelNode(g->nodes + g->count, g->graph, behind, behind ? 1 : 0, &n);
}

/* The chain as a graph; false where the driver refuses. */
static bool graph_make(struct backend *be, struct graph *g, const struct chain *chain) {
    g->nodes = static_cast<cudaGraphNode_t *>(mem_alloc(static_cast<size_t>(chain->count) * sizeof *g->nodes));
    g->calls = static_cast<char *>(mem_alloc(chain->used));
    memcpy(g->calls, chain->bytes, chain->used);
    g->used = chain->used;
    if (cudaGraphCreate(&g->graph, 0) != cudaSuccess) return false;
    for (size_t at = 0; at < g->used; at += room_of(call_at(g->calls, at)), g->count++)
        if (add_node(be, g, call_at(g->calls, at)) != cudaSuccess) return false;
    return cudaGraphInstantiate(&g->exec, g->graph, 0) == cudaSuccess && be->err.code == ST_OK;
}

/* Whether b can take the place of a in a graph. */
static bool alike(const struct call *a, const struct call *b) {
    return a->kernel == b->kernel && a->issue == b->issue && a->bytes == b->bytes && a->count == b->count &&
           memcmp(a->at, b->at, sizeof a->at) == 0 && (a->kernel || memcmp(of_call(a), of_call(b), a->bytes) == 0);
}

static bool same(const struct call *a, const struct call *b) {
    return a->shared == b->shared && memcmp(&a->grid, &b->grid, sizeof a->grid) == 0 &&
           memcmp(&a->block, &b->block, sizeof a->block) == 0 && memcmp(of_call(a), of_call(b), a->bytes) == 0;
}

static bool all_alike(const struct graph *g, const struct chain *chain) {
    if (g->used != chain->used || g->count != chain->count) return false;
    for (size_t at = 0; at < g->used; at += room_of(call_at(g->calls, at)))
        if (!alike(call_at(g->calls, at), call_at(chain->bytes, at))) return false;
    return true;
}

/* Puts what differs into the nodes. A launch that is under way keeps what it had. */
static bool graph_change(struct graph *g, const struct chain *chain) {
    int node = 0;
    for (size_t at = 0; at < g->used; at += room_of(call_at(g->calls, at)), node++) {
        const struct call *c = call_at(chain->bytes, at);
        if (same(call_at(g->calls, at), c)) continue;
        void *arguments[LAUNCH_ARGUMENTS];
        addresses_of(c, arguments);
        cudaKernelNodeParams n = node_of(c, arguments);
        if (allow_shared(c) != cudaSuccess || cudaGraphExecKernelNodeSetParams(g->exec, g->nodes[node], &n))
            return false;
        memcpy(g->calls + at, c, room_of(c));
    }
    return true;
}

/* --- which chain is which ---------------------------------------------------------------------------------------- */

static struct graph *graph_find(struct graphs *s, uint64_t key) {
    for (struct graph &g : s->all)
        if (g.key == key) return &g;
    return nullptr;
}

/* A free place, or that of a graph that was long not wanted; NULL while all are. */
static struct graph *graph_place(struct backend *be) {
    struct graphs *s = graphs_of(be);
    struct graph *oldest = s->all;
    for (struct graph &g : s->all) {
        if (!g.key) return &g;
        if (g.last < oldest->last) oldest = &g;
    }
    if (s->flushed - oldest->last <= FRESH) return nullptr;
    graph_end(be, oldest);
    return oldest;
}

/* Whether a chain of that key came before, if it is not so long ago. */
static bool was_seen(struct graphs *s, uint64_t key) {
    uint64_t *at = s->seen + key % SEEN;
    bool seen = *at == key;
    *at = key;
    return seen;
}

/* Chains go without graphs from now on, and that is no failure. */
static void refuse(struct backend *be) {
    graphs_of(be)->refused = true;
    be->err.code = ST_OK;
    cudaGetLastError();
}

/* The chain's graph, if it has one or is to have one. */
static struct graph *graph_for(struct backend *be, uint64_t key) {
    struct graphs *s = graphs_of(be);
    const struct chain *chain = &s->chain;
    struct graph *g = graph_find(s, key);
    if (g) return all_alike(g, chain) ? g : nullptr;
    if (!was_seen(s, key)) return nullptr;
    g = graph_place(be);
    if (!g) return nullptr;
    g->key = key;
    if (graph_make(be, g, chain)) return g;
    graph_clear(g);
    refuse(be);
    return nullptr;
}

/* Whether the chain went as a graph. */
static bool went_as_graph(struct backend *be, uint64_t key) {
    struct graphs *s = graphs_of(be);
    struct graph *g = s->refused || s->chain.count < LEAST_CALLS ? nullptr : graph_for(be, key);
    if (!g) return false;
    g->last = s->flushed;
    if (!graph_change(g, &s->chain)) {
        graph_end(be, g);
        refuse(be);
        return false;
    }
    cuda_check(be, cudaGraphLaunch(g->exec, cuda_of(be)->stream), call_at(s->chain.bytes, 0)->what);
    s->launched++;
    return true;
}

static void begin(struct graphs *s) {
    s->chain.used = 0;
    s->chain.count = 0;
    s->likeness = HASH_START;
}

void graphs_flush(struct backend *be) {
    struct graphs *s = graphs_of(be);
    if (s->chain.count == 0) return;
    uint64_t key = hash_bytes(s->likeness, &s->place, sizeof s->place) | 1;
    s->place++, s->flushed++;
    if (be->err.code == ST_OK && !went_as_graph(be, key)) issue_all(be, &s->chain);
    begin(s);
}

void graphs_restart(struct backend *be) {
    graphs_flush(be);
    graphs_of(be)->place = 0;
}

/* --- calls ------------------------------------------------------------------------------------------------------- */

/* A new call at the end of the chain, zeros but for its size. */
static struct call *call_new(struct backend *be, const char *what, size_t bytes) {
    struct graphs *s = graphs_of(be);
    size_t room = sizeof(struct call) + aligned(bytes);
    if (s->chain.count == CHAIN_CALLS || s->chain.used + room > CHAIN_BYTES) graphs_flush(be);
    struct call *c = reinterpret_cast<struct call *>(s->chain.bytes + s->chain.used);
    memset(static_cast<void *>(c), 0, room);
    c->what = what;
    c->bytes = static_cast<uint32_t>(aligned(bytes));
    return c;
}

static void call_end(struct backend *be, const struct call *c) {
    struct graphs *s = graphs_of(be);
    s->likeness = c->kernel ? hash_bytes(s->likeness, &c->kernel, sizeof c->kernel)
                            : hash_bytes(s->likeness, of_call(c), c->bytes);
    s->chain.used += room_of(c);
    s->chain.count++;
    if (s->at_once) graphs_flush(be);
}

void graphs_kernel(struct backend *be, const char *what, const void *kernel, dim3 grid, dim3 block, size_t shared,
                   int count, const size_t *sizes, const void *const *arguments) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += aligned(sizes[i]);
    struct call *c = call_new(be, what, bytes);
    c->kernel = kernel;
    c->grid = grid, c->block = block;
    c->shared = static_cast<uint32_t>(shared);
    c->count = static_cast<uint32_t>(count);
    for (int i = 0, at = 0; i < count; at += static_cast<int>(aligned(sizes[i])), i++) {
        c->at[i] = static_cast<uint16_t>(at);
        memcpy(of_call(c) + at, arguments[i], sizes[i]);
    }
    call_end(be, c);
}

void graphs_call(struct backend *be, const char *what, void (*issue)(struct backend *be, const void *of),
                 const void *of, size_t bytes) {
    struct call *c = call_new(be, what, bytes);
    c->issue = issue;
    memcpy(of_call(c), of, bytes);
    call_end(be, c);
}

struct graphs *graphs_new() {
    struct graphs *s = static_cast<struct graphs *>(mem_alloc(sizeof *s));
    const char *blocking = getenv("CUDA_LAUNCH_BLOCKING");
    s->at_once = blocking && strcmp(blocking, "1") == 0;
    begin(s);
    return s;
}

void graphs_free(struct graphs *s) {
    for (struct graph &g : s->all) graph_clear(&g);
    free(s);
}
