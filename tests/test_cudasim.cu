/* The simulator refuses what it must: for each kind of fault a kernel that has just that fault, and its twin that has
 * none. A fault runs in a child in every order of threads, and must end it with the sentence given here; a twin must
 * come to its end. What only the flavour `race` can see passes unseen in the other. */
#include <device.cuh>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <cmocka.h>
}

enum { N = 64 }; // threads of most kernels here: two warps
enum : unsigned { ALL = 0xffffffffu };
static const char *const UNSEEN = ""; // by this flavour
static const char *const orders[] = {"forward", "reverse", "shuffle:7"};

/* --- children ---------------------------------------------------------------------------------------------------- */

/* Runs it in a child in that order. What it wrote to stderr is in text; true when it came to its end. */
static bool survives(void (*run)(), const char *order, char *text, size_t bytes) {
    int ends[2], status;
    size_t used = 0;
    assert_int_equal(pipe(ends), 0);
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        if (!sim::order_set(order)) _exit(9);
        run();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t n; used + 1 < bytes && (n = read(ends[0], text + used, bytes - 1 - used)) > 0;)
        used += static_cast<size_t>(n);
    text[used] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static char said[1 << 16];

static void must_pass(void (*run)()) {
    for (const char *order : orders)
        if (!survives(run, order, said, sizeof said)) fail_msg("%s order: refused:\n%s", order, said);
}

/* sentence: what is said in the flavour `sim`, and what in `race`; an empty one: the fault is not seen. */
static void must_fail(void (*run)(), const char *in_sim, const char *in_race) {
#if SIM_RACE
    const char *sentence = in_race;
    (void)in_sim;
#else
    const char *sentence = in_sim;
    (void)in_race;
#endif
    for (const char *order : orders) {
        if (!*sentence) continue;
        if (survives(run, order, said, sizeof said)) fail_msg("%s order: not refused, wanted: %s", order, sentence);
        if (!strstr(said, sentence)) fail_msg("%s order: wanted: %s\ngot: %s", order, sentence, said);
        if (!strstr(said, "test_cudasim.cu:")) fail_msg("%s order: no line of the source in: %s", order, said);
    }
}

static void must_fail(void (*run)(), const char *sentence) { must_fail(run, sentence, sentence); }

template <typename T> T *device_new(int n) {
    T *p;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) _exit(8);
    return p;
}

template <typename T> T *device_zeros(int n) {
    T *p = device_new<T>(n);
    if (cudaMemset(p, 0, n * sizeof(T)) != cudaSuccess) _exit(8);
    return p;
}

template <typename... P>
void start(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared, typename same_type<P>::type... a) {
    if (sim_launch(kernel, blocks, threads, shared, nullptr, a...) != cudaSuccess) _exit(7);
}

/* --- barriers ---------------------------------------------------------------------------------------------------- */

/* What: 0: all come; 1: one has ended before; 2: they come to different lines. */
template <int what> __global__ void barriers(int *y) {
    if (what == 1 && threadIdx.x == 5) return;
    if (what == 2 && threadIdx.x >= 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0);
}

template <int what> void run_barriers() { start(barriers<what>, 2, N, 0, device_new<int>(2 * N)); }

__global__ void barriers_of_blocks(int *y) {
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0);
}

static void test_barriers(void **) {
    must_pass([] { start(barriers_of_blocks, 2, N, 0, device_new<int>(2 * N)); });
    must_fail(run_barriers<1>, "thread 5");
    must_fail(run_barriers<2>, "a barrier that not all threads share");
}

/* --- warp operations --------------------------------------------------------------------------------------------- */

enum { SANE, PARTED, OTHER_MASK, LANE_OUTSIDE, CALLER_OUTSIDE, LANE_ENDED, LANE_MISSING, AT_BARRIER };

template <int what> __global__ void warps(int *y) {
    unsigned lane = threadIdx.x % 32;
    int v = static_cast<int>(threadIdx.x);
    if (what == LANE_ENDED && threadIdx.x == 3) return;
    if (what == PARTED && lane < 16)
        v = __shfl_xor_sync(ALL, v, 1);
    else if (what == PARTED)
        v = __shfl_xor_sync(ALL, v, 1);
    if (what == OTHER_MASK) v = __shfl_sync(lane < 16 ? ALL : 0xffff0000u, v, static_cast<int>(lane));
    if (what == OTHER_MASK) __syncwarp();
    if (what == LANE_OUTSIDE && lane < 16) v = __shfl_sync(0xffffu, v, 20);
    if (what == CALLER_OUTSIDE) v = __shfl_sync(0xffffu, v, 2);
    if (what == LANE_ENDED || what == LANE_MISSING) v = __shfl_sync(ALL, v, 2);
    if (what == AT_BARRIER && lane == 7)
        __syncthreads();
    else if (what == AT_BARRIER)
        __syncwarp();
    if (what == SANE && lane < 16)
        v = __shfl_down_sync(0xffffu, v, 1, 16);
    else if (what == SANE)
        v = __shfl_up_sync(0xffff0000u, v, 1, 16);
    y[threadIdx.x] = v;
}

template <int what> void run_warps() { start(warps<what>, 1, what == LANE_MISSING ? 40 : N, 0, device_new<int>(N)); }

static void test_warp_operations(void **) {
    must_pass(run_warps<SANE>);
    must_fail(run_warps<PARTED>, "lanes of one warp part");
    must_fail(run_warps<OTHER_MASK>, "lanes of one warp part");
    must_fail(run_warps<LANE_OUTSIDE>, "reads lane 20, which is not in its mask");
    must_fail(run_warps<CALLER_OUTSIDE>, "is not in the mask");
    must_fail(run_warps<LANE_ENDED>, "3");
    must_fail(run_warps<LANE_MISSING>, "names lane 8, which the block has not");
    must_fail(run_warps<AT_BARRIER>, "barrier");
}

/* --- bounds ------------------------------------------------------------------------------------------------------ */

template <typename T> __global__ void static_shared(int *y, int reach) {
    SHARED(T, before, 3);
    SHARED(T, s, N);
    SHARED(T, after, 3);
    if (threadIdx.x < 3) before[threadIdx.x] = after[threadIdx.x] = T(0);
    s[threadIdx.x] = T(1);
    __syncthreads();
    y[threadIdx.x] = static_cast<int>(s[static_cast<int>(threadIdx.x) + reach]);
}

__global__ void dynamic_shared(int *y, int reach) {
    DYN_SHARED(float, s);
    s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = static_cast<int>(s[static_cast<int>(threadIdx.x) + reach]);
}

__global__ void global_copy(float *y, const float *x, int reach) {
    y[threadIdx.x] = x[static_cast<int>(threadIdx.x) + reach];
}

__global__ void global_store(float *y, int reach) { y[static_cast<int>(threadIdx.x) + reach] = 1.0f; }

static float *kept_shared;
__global__ void keep_shared(float *y) {
    SHARED(float, s, N);
    s[threadIdx.x] = 0.0f;
    if (threadIdx.x == 0) kept_shared = s;
    y[threadIdx.x] = 0.0f;
}

template <typename T, int reach> void run_static() { start(static_shared<T>, 1, N, 0, device_new<int>(N), reach); }
template <int reach> void run_dynamic() { start(dynamic_shared, 1, N, N * sizeof(float), device_new<int>(N), reach); }
template <int reach> void run_read() {
    start(global_copy, 1, N, 0, device_new<float>(N), device_zeros<float>(N), reach);
}
template <int reach> void run_write() { start(global_store, 1, N, 0, device_new<float>(N), reach); }

static void run_freed() {
    float *x = device_zeros<float>(N), *y = device_new<float>(N);
    cudaFree(x);
    start(global_copy, 1, N, 0, y, x, 0);
}

static void run_shared_of_another_kernel() {
    float *y = device_new<float>(N);
    start(keep_shared, 1, N, 0, y);
    start(global_copy, 1, N, 0, y, kept_shared, 0);
}

static void run_host_memory() {
    static float *plain = static_cast<float *>(calloc(N, sizeof *plain));
    start(global_copy, 1, N, 0, device_new<float>(N), plain, 0);
}

static void run_host_allocation() {
    float *x;
    if (cudaHostAlloc(&x, N * sizeof *x, cudaHostAllocMapped) != cudaSuccess) _exit(6);
    start(global_copy, 1, N, 0, device_new<float>(N), x, 0);
}

static void test_bounds(void **) {
    must_pass(run_static<float, 0>);
    must_pass(run_static<__nv_bfloat16, 0>);
    must_fail(run_static<float, 1>, "0 bytes after the end of shared `s`");
    must_fail(run_static<float, -1>, "4 bytes before shared `s`");
    must_fail(run_static<__nv_bfloat16, 1>, "0 bytes after the end of shared `s`");
    must_fail(run_static<__nv_bfloat16, -2>, "bytes before shared `s`");
    must_pass(run_dynamic<0>);
    must_fail(run_dynamic<1>, "0 bytes after the end of the 256 bytes of dynamic shared memory");
    must_fail(run_dynamic<-1>, "4 bytes before the 256 bytes of dynamic shared memory");
    must_pass(run_read<0>);
    must_pass(run_write<0>);
    must_fail(run_read<1>, "0 bytes after the end of 256 bytes of memory of the device");
    must_fail(run_read<-1>, "4 bytes before 256 bytes of memory of the device");
    must_fail(run_write<1>, "0 bytes after the end of 256 bytes of memory of the device");
    must_fail(run_write<-1>, "4 bytes before 256 bytes of memory of the device");
    must_fail(run_freed, "memory of the device that was freed");
    must_fail(run_shared_of_another_kernel, "shared memory outside of every array");
    must_fail(run_host_memory, UNSEEN, "not memory of the device");
    must_pass(run_host_allocation);
}

/* --- alignment --------------------------------------------------------------------------------------------------- */

__global__ void wide_load(float *y, const float *x, int first) {
    float4 v = *reinterpret_cast<const float4 *>(x + first);
    if (threadIdx.x == 0) y[0] = v.x + v.y + v.z + v.w;
}

template <int first> void run_wide() { start(wide_load, 1, N, 0, device_new<float>(N), device_zeros<float>(N), first); }

static void test_alignment(void **) {
    must_pass(run_wide<4>);
    must_fail(run_wide<2>, "is not aligned to 16 bytes");
}

/* --- values that nobody wrote ------------------------------------------------------------------------------------ */

__global__ void half_written(float *y, unsigned written) {
    SHARED(float, s, N);
    if (threadIdx.x < written) s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}

/* The last block's data must not hide that this one wrote nothing. */
__global__ void written_by_first_block(float *y) {
    SHARED(float, s, N);
    if (blockIdx.x == 0) s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[blockIdx.x * N + threadIdx.x] = s[threadIdx.x];
}

static void run_written() { start(half_written, 1, N, 0, device_new<float>(N), N); }
static void run_unwritten_shared() { start(half_written, 1, N, 0, device_new<float>(N), N - 1); }
static void run_stale_shared() { start(written_by_first_block, 2, N, 0, device_new<float>(2 * N)); }
static void run_unwritten_global() { start(global_copy, 1, N, 0, device_new<float>(N), device_new<float>(N), 0); }

static void test_values_that_nobody_wrote(void **) {
    must_pass(run_written);
    must_fail(run_unwritten_shared, UNSEEN, "uninitialised: thread 63");
    must_fail(run_stale_shared, UNSEEN, "uninitialised:");
    must_fail(run_unwritten_global, UNSEEN, "uninitialised:");
}

/* --- races ------------------------------------------------------------------------------------------------------- */

enum { ORDERED, READ_AFTER_WRITE, WRITE_AFTER_READ, BOTH_WRITE, WARP_ORDERED, WARP_UNORDERED, SHUFFLE_ONLY };

/* The neighbour is in the same warp or, for the last lane, in the other one. */
template <int what> __global__ void neighbours(float *y) {
    SHARED(float, s, N);
    unsigned t = threadIdx.x, next = what >= WARP_ORDERED ? t ^ 1 : (t + 1) % N;
    float sum = 0.0f;
    s[t] = 1.0f;
    __syncthreads();
    if (what == WRITE_AFTER_READ) sum = s[next];
    if (what != WRITE_AFTER_READ && what != BOTH_WRITE) s[t] = 2.0f;
    if (what == BOTH_WRITE) s[t / 2] = 2.0f;
    if (what == ORDERED) __syncthreads();
    if (what == WARP_ORDERED) __syncwarp();
    if (what == SHUFFLE_ONLY) sum += __shfl_xor_sync(ALL, sum, 1);
    if (what != WRITE_AFTER_READ && what != BOTH_WRITE) sum += s[next];
    if (what == WRITE_AFTER_READ) s[t] = 3.0f;
    y[t] = sum;
}

/* Two threads write the halves of one word. */
__global__ void halves(float *y) {
    SHARED(__nv_bfloat16, s, 2 * N);
    s[threadIdx.x] = 1.0f;
    s[N + threadIdx.x] = 2.0f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ^ 33];
}

/* Block by block: each its own element; or all the first one; or the one of the block before. */
template <int what> __global__ void blocks(float *y, int *count) {
    __syncthreads();
    if (threadIdx.x) return;
    if (what == ORDERED) y[blockIdx.x] += 1.0f;
    if (what == BOTH_WRITE) y[0] = 1.0f;
    if (what == READ_AFTER_WRITE) y[blockIdx.x] += y[blockIdx.x ^ 1];
    atomicAdd(count, 1);
    if (what == WRITE_AFTER_READ && blockIdx.x == 2) count[0] = 1;
}

template <int what> void run_neighbours() { start(neighbours<what>, 1, N, 0, device_new<float>(N)); }
template <int what> void run_blocks() {
    float *y = device_zeros<float>(N);
    int *count = device_zeros<int>(1);
    start(blocks<what>, 4, 32, 0, y, count);
    start(blocks<what>, 4, 32, 0, y, count); // launches are ordered
}

static void test_races(void **) {
    must_pass(run_neighbours<ORDERED>);
    must_fail(run_neighbours<READ_AFTER_WRITE>, UNSEEN, "race: ");
    must_fail(run_neighbours<WRITE_AFTER_READ>, UNSEEN, "race: ");
    must_fail(run_neighbours<BOTH_WRITE>, UNSEEN, "race: ");
    must_pass(run_neighbours<WARP_ORDERED>);
    must_fail(run_neighbours<WARP_UNORDERED>, UNSEEN, "race: ");
    must_fail(run_neighbours<SHUFFLE_ONLY>, UNSEEN, "race: ");
    must_pass([] { start(halves, 1, N, 0, device_new<float>(N)); });
    must_pass(run_blocks<ORDERED>);
    must_fail(run_blocks<BOTH_WRITE>, UNSEEN, "race: ");
    must_fail(run_blocks<READ_AFTER_WRITE>, UNSEEN, "race: ");
    must_fail(run_blocks<WRITE_AFTER_READ>, UNSEEN, "race: "); // a plain write among atomic ones
}

/* --- cp.async ---------------------------------------------------------------------------------------------------- */

enum {
    READ_EARLY = 1,
    WRITE_EARLY,
    SOURCE_WRITTEN,
    NEVER_WAITED,
    NOT_COMMITTED,
    WAITED_FOR_OTHERS,
    NO_BARRIER,
    SLANTED
};

template <int what> __global__ void copies(float *y, float *x) {
    SHARED(float, s, 4 * N + 4);
    unsigned t = threadIdx.x;
    float early = 0.0f;
    cp_async_16(s + 4 * t + (what == SLANTED ? 1 : 0), x + 4 * t, true);
    if (what != NOT_COMMITTED) cp_async_commit();
    if (what == READ_EARLY) early = s[4 * t];
    if (what == WRITE_EARLY) s[4 * t] = 1.0f;
    if (what == SOURCE_WRITTEN) x[4 * t] = 7.0f;
    if (what == WAITED_FOR_OTHERS) cp_async_commit(); // an empty group is the newest
    if (what == NEVER_WAITED) return;
    if (what == WAITED_FOR_OTHERS)
        cp_async_wait<2>();
    else
        cp_async_wait<0>();
    if (what != NO_BARRIER) __syncthreads();
    y[t] = s[(4 * t + 4) % (4 * N)] + early;
}

template <int what> void run_copies() {
    start(copies<what>, 1, N, 0, device_new<float>(N), device_zeros<float>(4 * N));
}

static void test_copies_in_the_background(void **) {
    must_pass(run_copies<SANE>);
    must_fail(run_copies<READ_EARLY>, "under way");
    must_fail(run_copies<WRITE_EARLY>, "under way");
    must_fail(run_copies<SOURCE_WRITTEN>, "was written before the copy was waited for");
    must_fail(run_copies<NEVER_WAITED>, "ends while 1 of its copies are under way");
    must_fail(run_copies<NOT_COMMITTED>, "under way");
    must_fail(run_copies<WAITED_FOR_OTHERS>, "under way");
    must_fail(run_copies<NO_BARRIER>, UNSEEN, "test_cudasim.cu");
    must_fail(run_copies<SLANTED>, "destination that is not aligned to 16 bytes");
}

/* --- what a launch may ask for ----------------------------------------------------------------------------------- */

__global__ void nothing() {}
__global__ void greedy() {
    SHARED(char, s, 49 * 1024);
    s[0] = 0;
}

__global__ void modest() {
    SHARED(char, s, 1024);
    s[threadIdx.x] = 0;
}
__global__ void unasked() {}

/* A launch of a kernel for which nothing was asked. */
static bool launch_unasked(size_t shared) {
    return cudaLaunchKernel(device_kernel(unasked), 1, 32, nullptr, shared, nullptr) == cudaSuccess;
}

static void test_limits_of_a_launch(void **) {
    char *p;
    assert_int_equal(sim_launch(nothing, 1, 1024, 0, nullptr), cudaSuccess);
    assert_int_equal(sim_launch(nothing, 1, 1025, 0, nullptr), cudaErrorInvalidConfiguration);
    assert_int_equal(sim_launch(nothing, dim3(1, 65536), 32, 0, nullptr), cudaErrorInvalidConfiguration);
    assert_int_equal(sim_launch(nothing, 1, 32, 99 * 1024, nullptr), cudaSuccess);
    assert_int_equal(sim_launch(nothing, 1, 32, 99 * 1024 + 1, nullptr), cudaErrorInvalidValue);
    assert_false(launch_unasked(48 * 1024 + 1));
    assert_true(launch_unasked(48 * 1024));
    must_fail([] { start(greedy, 1, 32, 0); }, "take more than 49152 bytes");
    must_pass([] { start(modest, 1, 32, 98 * 1024); });
    must_fail([] { start(modest, 1, 32, 99 * 1024); }, "and its 101376 dynamic bytes take more than 101376 bytes");
    assert_int_equal(cudaMalloc(&p, size_t{1} << 50), cudaErrorMemoryAllocation);
    cudaGetLastError();
}

static void test_copies_of_the_host(void **) {
    float host[4] = {1, 2, 3, 4}, *p;
    assert_int_equal(cudaMalloc(&p, sizeof host), cudaSuccess);
    assert_int_equal(cudaMemcpy(p, host, sizeof host, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaMemcpy(host, p, sizeof host, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(p + 1, host, sizeof host, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(p, 0, sizeof host + 1), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(p + 1), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(p), cudaSuccess);
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

/* --- streams ----------------------------------------------------------------------------------------------------- */

__global__ void raise(int *x, int by) { x[threadIdx.x] += by; }

enum { NO_EVENT, AN_EVENT, AN_EARLY_EVENT };

/* A kernel in one stream and a copy of what it writes in another; the first number that arrives. */
static int copied_beside(int what) {
    int *x = device_zeros<int>(N), *host, got;
    cudaStream_t kernels, copies;
    cudaEvent_t e;
    assert_int_equal(cudaHostAlloc(&host, N * sizeof *host, 0), cudaSuccess);
    assert_int_equal(cudaStreamCreate(&kernels), cudaSuccess);
    assert_int_equal(cudaStreamCreate(&copies), cudaSuccess);
    assert_int_equal(cudaEventCreate(&e), cudaSuccess);
    assert_int_equal(sim_launch(raise, 1, N, 0, kernels, x, 1), cudaSuccess);
    if (what == AN_EARLY_EVENT) cudaEventRecord(e, kernels);
    assert_int_equal(sim_launch(raise, 1, N, 0, kernels, x, 2), cudaSuccess);
    if (what == AN_EVENT) cudaEventRecord(e, kernels);
    if (what != NO_EVENT) cudaStreamWaitEvent(copies, e);
    cudaMemcpyAsync(host, x, N * sizeof *host, cudaMemcpyDeviceToHost, copies);
    cudaStreamSynchronize(copies);
    got = host[0];
    cudaStreamSynchronize(kernels);
    cudaMemcpy(host, x, N * sizeof *host, cudaMemcpyDeviceToHost);
    assert_int_equal(host[N - 1], 3);
    cudaEventDestroy(e), cudaStreamDestroy(copies), cudaStreamDestroy(kernels);
    cudaFreeHost(host), cudaFree(x);
    return got;
}

static void test_streams(void **) {
    assert_int_equal(copied_beside(NO_EVENT), 0);
    assert_int_equal(copied_beside(AN_EARLY_EVENT), 1);
    assert_int_equal(copied_beside(AN_EVENT), 3);
    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    assert_int_equal(copied_beside(NO_EVENT), 3);
    unsetenv("CUDA_LAUNCH_BLOCKING");
}

/* --- orders ------------------------------------------------------------------------------------------------------ */

/* Which thread came how manieth, and a sum that does not depend on it. */
__global__ void arrival(int *came, int *count, float *sum) {
    SHARED(float, s, N);
    came[blockIdx.x * N + threadIdx.x] = atomicAdd(count, 1);
    float v = 1.0f / static_cast<float>(threadIdx.x + 1);
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(ALL, v, d);
    s[threadIdx.x] = v;
    __syncthreads();
    sum[blockIdx.x * N + threadIdx.x] = s[threadIdx.x] + s[threadIdx.x ^ 32];
}

static void test_orders(void **) {
    enum { BLOCKS = 5 };
    static int came[3][BLOCKS * N];
    static float sum[3][BLOCKS * N];
    for (int i = 0; i < 3; i++) {
        int *c = device_new<int>(BLOCKS * N), *n = device_zeros<int>(1);
        float *f = device_new<float>(BLOCKS * N);
        assert_true(sim::order_set(orders[i]));
        start(arrival, BLOCKS, N, 0, c, n, f);
        cudaMemcpy(came[i], c, sizeof came[i], cudaMemcpyDeviceToHost);
        cudaMemcpy(sum[i], f, sizeof sum[i], cudaMemcpyDeviceToHost);
        cudaFree(c), cudaFree(n), cudaFree(f);
    }
    assert_true(sim::order_set("forward"));
    assert_false(sim::order_set("backward"));
    assert_false(sim::order_set("shuffle:"));
    for (int i = 0; i < BLOCKS * N; i++) {
        assert_int_equal(came[0][i], i);
        assert_int_equal(came[1][i], BLOCKS * N - 1 - i);
    }
    assert_memory_not_equal(came[2], came[0], sizeof came[0]);
    assert_memory_equal(sum[1], sum[0], sizeof sum[0]);
    assert_memory_equal(sum[2], sum[0], sizeof sum[0]);
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barriers),
        cmocka_unit_test(test_warp_operations),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_values_that_nobody_wrote),
        cmocka_unit_test(test_races),
        cmocka_unit_test(test_copies_in_the_background),
        cmocka_unit_test(test_limits_of_a_launch),
        cmocka_unit_test(test_copies_of_the_host),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_orders),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
