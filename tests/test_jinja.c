/* The interpreter against what jinja2 makes of the same templates (tests/golden/jinja), its errors and its limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/memory.h"
#include "data/jinja.h"

static cJSON *read_cases(void) {
    struct err e = {0};
    cJSON *cases = json_read("tests/golden/jinja/cases.json", &e);
    if (!cases) fail_msg("%s", e.text);
    return cases;
}

static const char *get(const cJSON *o, const char *key) {
    const cJSON *v = json_get(o, key);
    return v ? v->valuestring : NULL;
}

static enum status render(const char *template, const cJSON *vars, struct text *out, struct err *e) {
    struct jinja *j = jinja_new(template, "a template", e);
    if (j) jinja_render(j, vars, out, e);
    jinja_free(j);
    return e->code;
}

static void test_as_jinja2(void **state) {
    (void)state;
    cJSON *cases = read_cases();
    int count = 0, wrong = 0;
    for (const cJSON *c = cases->child; c; c = c->next) {
        const char *want = get(c, "output");
        struct text out = {0};
        struct err e = {0};
        if (!want) continue;
        count++;
        if (render(get(c, "template"), json_get(c, "vars"), &out, &e) != ST_OK || strcmp(text_str(&out), want) != 0) {
            print_error("%s: %s\n  wanted: %s\n  found:  %s\n", get(c, "name"), e.text, want, text_str(&out));
            wrong++;
        }
        text_free(&out);
    }
    cJSON_Delete(cases);
    assert_true(count > 100);
    assert_int_equal(wrong, 0);
}

static void test_refusals(void **state) {
    (void)state;
    cJSON *cases = read_cases();
    int count = 0, wrong = 0;
    for (const cJSON *c = cases->child; c; c = c->next) {
        const char *words = get(c, "refused");
        struct text out = {0};
        struct err e = {0};
        if (!words) continue;
        count++;
        enum status st = render(get(c, "template"), json_get(c, "vars"), &out, &e);
        bool named = strstr(e.text, words) && strncmp(e.text, "a template: line ", 17) == 0;
        if (st != ST_FAIL || !named || out.len != 0) {
            print_error("%s: wanted \"%s\", found %d \"%s\"\n", get(c, "name"), words, st, e.text);
            wrong++;
        }
        text_free(&out);
    }
    cJSON_Delete(cases);
    assert_true(count > 80);
    assert_int_equal(wrong, 0);
}

static void test_line_of_an_error(void **state) {
    (void)state;
    struct text out = {0};
    struct err e = {0};
    assert_int_equal(render("{% if 1 %}\r\n{{ 1 }}\n{#\n#}{{ [1,\n x.y] }}{% endif %}", NULL, &out, &e), ST_FAIL);
    assert_string_equal(e.text, "a template: line 5: 'x' is undefined, so it has no attribute y");
    text_free(&out);
}

static void test_output_is_added(void **state) {
    (void)state;
    struct text out = {0};
    struct err e = {0};
    text_add(&out, "before ");
    assert_int_equal(render("{{ 1 }}", NULL, &out, &e), ST_OK);
    assert_string_equal(text_str(&out), "before 1");
    assert_int_equal(render("x{{ nothing.y }}", NULL, &out, &e), ST_FAIL);
    assert_string_equal(text_str(&out), "before 1");
    text_free(&out);
}

static void test_one_template_many_renderings(void **state) {
    (void)state;
    struct err e = {0};
    struct jinja *j = jinja_new("{% set ns = namespace(n=n) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "t", &e);
    assert_non_null(j);
    for (int i = 0; i < 3; i++) {
        struct text out = {0};
        cJSON *vars = cJSON_CreateObject();
        cJSON_AddNumberToObject(vars, "n", i);
        assert_int_equal(jinja_render(j, vars, &out, &e), ST_OK);
        assert_int_equal(strtol(text_str(&out), NULL, 10), i + 1);
        cJSON_Delete(vars);
        text_free(&out);
    }
    jinja_free(j);
}

static void test_text_that_is_not_utf8(void **state) {
    (void)state;
    struct text out = {0};
    struct err e = {0}, e2 = {0};
    assert_null(jinja_new("a\xff", "t", &e));
    assert_non_null(strstr(e.text, "not UTF-8 at byte 1"));
    cJSON *vars = cJSON_CreateObject();
    cJSON_AddStringToObject(vars, "s", "\xE6\x97");
    assert_int_equal(render("{{ s[0] }}", vars, &out, &e2), ST_FAIL);
    assert_non_null(strstr(e2.text, "not UTF-8"));
    cJSON_Delete(vars);
}

/* Whatever is left of a template is rendered or refused; nothing is read beyond it. */
static void try_bytes(const char *bytes, size_t n, const cJSON *vars) {
    char *copy = mem_text_n(bytes, n);
    struct text out = {0};
    struct err e = {0};
    enum status st = render(copy, vars, &out, &e);
    assert_true(st == ST_OK || (st == ST_FAIL && e.text[0]));
    text_free(&out);
    free(copy);
}

static void test_every_truncation(void **state) {
    (void)state;
    cJSON *cases = read_cases();
    const char *last = "";
    for (const cJSON *c = cases->child; c; c = c->next) {
        const char *template = get(c, "template");
        if (!get(c, "output") || strcmp(template, last) == 0) continue;
        size_t n = strlen(template), step = n > 4000 ? 3 : 1;
        for (size_t i = 0; i < n; i += step) try_bytes(template, i, json_get(c, "vars"));
        last = template;
    }
    cJSON_Delete(cases);
}

/* Each template with a few bytes replaced by pieces of the language. */
static void test_mutations(void **state) {
    (void)state;
    static const char pieces[] = "{}%#()[]|.,:'\"\\-+*/~ \n0a_is=!<>";
    cJSON *cases = read_cases();
    uint64_t x = 88172645463325252u;
    for (const cJSON *c = cases->child; c; c = c->next) {
        const char *template = get(c, "template");
        size_t n = strlen(template);
        if (!get(c, "output") || n == 0) continue;
        for (int round = 0; round < 40; round++) {
            char *copy = mem_text(template);
            for (int k = 0; k < 3; k++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                if ((unsigned char)copy[x % n] < 0x80) copy[x % n] = pieces[(x >> 32) % (sizeof pieces - 1)];
            }
            try_bytes(copy, n, json_get(c, "vars"));
            free(copy);
        }
    }
    cJSON_Delete(cases);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_jinja2),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_line_of_an_error),
        cmocka_unit_test(test_output_is_added),
        cmocka_unit_test(test_one_template_many_renderings),
        cmocka_unit_test(test_text_that_is_not_utf8),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
