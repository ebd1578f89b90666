/* Graphs: lists of tasks that are kept. Each node holds what it does; a launch puts copies of all into the stream, so a
 * change of a node is seen by later launches only. A node is named by the graph that it was made in, which must still be
 * there. With GRAFT_SIM_GRAPHS=0 in the environment there are no graphs to be had. */
#include <stdlib.h>

#include "tests/cudasim/cuda_runtime.h"
#include "tests/cudasim/runtime.h"

struct sim_node {
    struct sim_node *next;
    struct sim_graph *graph;
    struct sim::tasks tasks;
    bool kernel; // one task, a launch
};

struct sim_graph {
    struct sim_node *first, *last;
};

/* Nodes of its own, as many and in the same order as those of the graph. */
struct sim_exec {
    struct sim_graph *graph;
    struct sim_graph own;
};

namespace sim {

template <typename T> static T *object_new() {
    T *object = static_cast<T *>(calloc(1, sizeof(T)));
    if (!object) fail("out of memory");
    return object;
}

static struct sim_node *node_new(struct sim_graph *g) {
    struct sim_node *n = object_new<struct sim_node>();
    n->graph = g;
    if (g->last)
        g->last->next = n;
    else
        g->first = n;
    g->last = n;
    return n;
}

static void nodes_free(struct sim_graph *g) {
    while (g->first) {
        struct sim_node *next = g->first->next;
        tasks_free(&g->first->tasks);
        free(g->first);
        g->first = next;
    }
}

static void want_chain(const struct sim_graph *g, const cudaGraphNode_t *behind, size_t count) {
    if (count != (g->last ? 1 : 0) || (g->last && *behind != g->last))
        fail("a node of a graph does not follow the last one: the simulator runs nodes in their order");
}

/* What the node's parameters say, as its only task; false: no kernel that can run so. */
static bool node_set(struct sim_node *n, const cudaKernelNodeParams *p) {
    alignas(16) char bound[BOUND_MOST];
    struct launch l = {p->func, nullptr, bound, 0, p->grid, p->block, p->sharedMemBytes};
    if (!launch_bind(&l, p->kernelParams) || !launch_fits(&l)) return false;
    tasks_free(&n->tasks);
    task_of_launch(&n->tasks, &l);
    n->kernel = true;
    return true;
}

} // namespace sim

using sim::give;

cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned) {
    *g = sim::object_new<struct sim_graph>();
    return give(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    sim::nodes_free(g);
    free(g);
    return give(cudaSuccess);
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *n, cudaGraph_t g, const cudaGraphNode_t *behind, size_t count,
                                   const cudaKernelNodeParams *p) {
    sim::want_chain(g, behind, count);
    *n = sim::node_new(g);
    return give(sim::node_set(*n, p) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t *n, cudaGraph_t g, const cudaGraphNode_t *behind, size_t count,
                                       cudaGraph_t child) {
    sim::want_chain(g, behind, count);
    *n = sim::node_new(g);
    for (const struct sim_node *c = child->first; c; c = c->next) sim::tasks_copy(&(*n)->tasks, &c->tasks);
    return give(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long) {
    const char *graphs = getenv("GRAFT_SIM_GRAPHS");
    if (graphs && *graphs == '0') return give(cudaErrorNotSupported);
    *e = sim::object_new<struct sim_exec>();
    (*e)->graph = g;
    for (const struct sim_node *n = g->first; n; n = n->next) {
        struct sim_node *own = sim::node_new(&(*e)->own);
        sim::tasks_copy(&own->tasks, &n->tasks);
        own->kernel = n->kernel;
    }
    return give(cudaSuccess);
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t e, cudaGraphNode_t n, const cudaKernelNodeParams *p) {
    struct sim_node *own = e->own.first;
    for (const struct sim_node *at = e->graph->first; at && at != n; at = at->next) own = own->next;
    if (!own || n->graph != e->graph || !own->kernel) return give(cudaErrorInvalidValue);
    return give(sim::node_set(own, p) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    for (const struct sim_node *n = e->own.first; n; n = n->next) sim::stream_tasks(s, &n->tasks);
    return give(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
    sim::nodes_free(&e->own);
    free(e);
    return give(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s || sim::stream_captures(s)) return give(cudaErrorInvalidValue);
    sim::stream_capture(s, true);
    return give(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    if (!sim::stream_captures(s)) return give(cudaErrorInvalidValue);
    struct sim::tasks *captured = sim::stream_capture(s, false);
    *g = sim::object_new<struct sim_graph>();
    sim::node_new(*g)->tasks = *captured;
    *captured = {};
    return give(cudaSuccess);
}
