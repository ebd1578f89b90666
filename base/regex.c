#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/regex.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct regex {
    pcre2_code *code;
};

struct regex *regex_new(const char *pattern, const char *where, struct err *e) {
    int number;
    PCRE2_SIZE at;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &number, &at, NULL);
    if (!code) {
        char why[128] = "";
        pcre2_get_error_message(number, (PCRE2_UCHAR *)why, sizeof why);
        err_set(e, ST_FAIL, "%s: \"%s\" is not a regular expression: %s at character %zu", where, pattern, why, at);
        return NULL;
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); // where there is no JIT, the interpreter serves
    struct regex *r = mem_alloc(sizeof *r);
    r->code = code;
    return r;
}

void regex_free(struct regex *r) {
    if (!r) return;
    pcre2_code_free(r->code);
    free(r);
}

static bool match(const struct regex *r, const char *s, uint32_t options) {
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    int n = pcre2_match(r->code, (PCRE2_SPTR)s, strlen(s), 0, options, data, NULL);
    pcre2_match_data_free(data);
    return n >= 0;
}

bool regex_full(const struct regex *r, const char *s) { return match(r, s, PCRE2_ANCHORED | PCRE2_ENDANCHORED); }
bool regex_prefix(const struct regex *r, const char *s) { return match(r, s, PCRE2_ANCHORED); }
bool regex_search(const struct regex *r, const char *s) { return match(r, s, 0); }
