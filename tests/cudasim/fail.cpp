/* What a failure says: one message on stderr, then abort. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/cudasim/runtime.h"

extern "C" char __executable_start; // where the linker says that the program lies in memory

namespace sim {

/* Asks addr2line, which is part of binutils; without it the bare address stands. */
struct code_name code_describe(const void *address) {
    struct code_name name;
    char command[512], self[256], function[160] = "", place[256] = "";
    snprintf(name.text, sizeof name.text, "%p", address);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || strchr(self, '\'')) return name;
    self[n] = '\0';
    size_t offset = static_cast<size_t>(static_cast<const char *>(address) - &__executable_start);
    snprintf(command, sizeof command, "addr2line -Cfe '%s' %zx 2>/dev/null", self, offset);
    FILE *f = popen(command, "r");
    if (!f) return name;
    bool both = fgets(function, sizeof function, f) && fgets(place, sizeof place, f);
    pclose(f);
    if (!both || function[0] == '?') return name;
    function[strcspn(function, "\n")] = place[strcspn(place, "\n(")] = '\0';
    char here[256] = "";
    const char *shown = place, *folder = getcwd(here, sizeof here);
    if (folder && strncmp(place, folder, strlen(folder)) == 0) shown = place + strlen(folder) + 1;
    snprintf(name.text, sizeof name.text, "%s in %s", shown, function);
    return name;
}

void fail(const char *format, ...) {
    static const char *const orders[] = {"forward", "reverse", "shuffled"};
    static bool again;
    static char text[8192];
    va_list list;
    if (again) abort();
    again = true;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fflush(nullptr);
    fprintf(stderr, "cudasim: %s\n", text);
    if (here) {
        block_describe(text, sizeof text);
        fprintf(stderr, "cudasim: block (%u,%u,%u), %s order:\n%s", now.index.x, now.index.y, now.index.z,
                orders[order], text);
    }
    if (now_launch) fprintf(stderr, "cudasim: kernel at %s\n", code_describe(now_launch->kernel).text);
    fflush(nullptr);
    abort();
}

} // namespace sim

/* --- what the compiler's checks call ------------------------------------------------------------------------------ */

#if SIM_ASAN
#include <sanitizer/asan_interface.h>

/* Instead of AddressSanitizer's own report, where a kernel touches the device's memory. */
extern "C" void __asan_on_error() {
    char where[256];
    const struct sim::lane *of;
    const void *p = __asan_get_report_address();
    if (!sim::here || !sim::memory_in_range(p)) return;
    const char *does = __asan_get_report_access_type() ? "writes" : "reads";
    struct sim::code_name code = sim::code_describe(__asan_get_report_pc());
    sim::memory_describe(p, where, sizeof where);
    if (const struct sim::pending_copy *c = sim::copy_pending_at(p, &of))
        sim::fail("a copy is under way: %s %s %s (%s), where thread %u began one (%s:%d) that it has not waited for",
                  sim::lane_describe(sim::here).text, does, where, code.text, of->number, c->at.file, c->at.line);
    sim::fail("out of bounds: %s %s %zu bytes at %s (%s)", sim::lane_describe(sim::here).text, does,
              __asan_get_report_access_size(), where, code.text);
}
#endif

/* What -fsanitize=alignment calls: UBSan's layout of its description. */
struct type_mismatch {
    const char *file;
    uint32_t line, column;
    const void *type;
    unsigned char log_alignment, kind;
};

extern "C" void __ubsan_handle_type_mismatch_v1_abort(struct type_mismatch *m, uintptr_t address) {
    if (!address) sim::fail("%s:%u: a null pointer", m->file, m->line);
    sim::fail("%s:%u: address %#zx is not aligned to %u bytes", m->file, m->line, static_cast<size_t>(address),
              1u << m->log_alignment);
}
