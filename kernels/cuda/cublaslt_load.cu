/* Opening cuBLASLt. */
#include <dlfcn.h>
#include <stdio.h>

#include "kernels/cuda/cublaslt.h"

enum { OLDEST = 12, NEWEST = 13 };

/* Where the toolkit puts it itself, for machines whose linker does not look there. */
static void *open_version(int version) {
    static const char *const folders[] = {"", "/usr/local/cuda/lib64/"};
    char file[64];
    void *library = nullptr;
    for (const char *folder : folders) {
        snprintf(file, sizeof file, "%slibcublasLt.so.%d", folder, version);
        if (!library) library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    }
    return library;
}

/* That of the CUDA that graft was built with comes first: the driver is known to serve it. */
static void *open_library() {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    const int first = runtime / 1000 < NEWEST ? OLDEST : NEWEST;
    void *library = open_version(first);
    return library ? library : open_version(OLDEST + NEWEST - first);
}

static bool find(void *library, const char *name, void *call, struct err *e) {
    void *address = dlsym(library, name);
    if (!address) err_set(e, ST_FAIL, "the cuBLAS library has no %s; install that of CUDA 12 or 13", name);
    *static_cast<void **>(call) = address;
    return address != nullptr;
}

enum status cublaslt_load(struct cublaslt_calls *calls, struct err *e) {
    void *library = open_library();
    if (!library) {
        const char *reason = dlerror();
        return err_set(e, ST_FAIL,
                       "a GPU needs cuBLAS, but neither libcublasLt.so.13 nor libcublasLt.so.12 opens (%s); install it "
                       "(libcublas-13-0, or pip install nvidia-cublas and its lib folder in LD_LIBRARY_PATH), or train "
                       "with --device cpu",
                       reason ? reason : "no reason given");
    }
    find(library, "cublasLtCreate", &calls->create, e);
    find(library, "cublasLtDestroy", &calls->destroy, e);
    find(library, "cublasLtGetStatusString", &calls->status_text, e);
    find(library, "cublasLtMatmulDescCreate", &calls->product_new, e);
    find(library, "cublasLtMatmulDescDestroy", &calls->product_free, e);
    find(library, "cublasLtMatmulDescSetAttribute", &calls->product_set, e);
    find(library, "cublasLtMatrixLayoutCreate", &calls->layout_new, e);
    find(library, "cublasLtMatrixLayoutDestroy", &calls->layout_free, e);
    find(library, "cublasLtMatmulPreferenceCreate", &calls->preference_new, e);
    find(library, "cublasLtMatmulPreferenceDestroy", &calls->preference_free, e);
    find(library, "cublasLtMatmulPreferenceSetAttribute", &calls->preference_set, e);
    find(library, "cublasLtMatmulAlgoGetHeuristic", &calls->candidates, e);
    find(library, "cublasLtMatmul", &calls->multiply, e);
    find(library, "cublasLtGetVersion", &calls->version, e);
    Dl_info where;
    calls->file = dladdr(reinterpret_cast<void *>(calls->version), &where) ? where.dli_fname : "a place unknown";
    return e->code;
}
