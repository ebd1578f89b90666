/* What a run writes for people: the event file read back, the page and the card checked for form and escapes. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "base/yaml.h"
#include "lora/model_card.h"
#include "lora/report.h"
#include "lora/report_log.h"
#include "lora/tensorboard.h"
#include "tests/folder.h"

static void test_checksums(void **state) {
    (void)state;
    const uint64_t length = 24;
    const unsigned char first[] = "\x09\x00\x00\x00\x00\x00\x00\xF0\x3F\x1A\x0D"
                                  "brain.Event:2";
    assert_int_equal(crc32c("123456789", 9), 0xE3069283);
    assert_int_equal(crc32c_masked("123456789", 9), 0xC78AB0E5);
    assert_int_equal(crc32c_masked(&length, 8), 0x224B7FA3);
    assert_int_equal(crc32c_masked(first, 24), 0x7A57BF86);
    assert_int_equal(crc32c("", 0), 0);
}

struct reader {
    const unsigned char *at, *end;
};

static uint64_t read_little(struct reader *r, int bytes) {
    uint64_t v = 0;
    assert_true(r->end - r->at >= bytes);
    for (int i = 0; i < bytes; i++) v |= (uint64_t)*r->at++ << (8 * i);
    return v;
}

static uint64_t read_varint(struct reader *r) {
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
        assert_true(r->at < r->end && shift < 64);
        v |= (uint64_t)(*r->at & 127) << shift;
        if (!(*r->at++ & 128)) return v;
    }
}

static struct reader read_bytes(struct reader *r) {
    uint64_t n = read_varint(r);
    assert_true(n <= (uint64_t)(r->end - r->at));
    struct reader inner = {r->at, r->at + n};
    r->at += n;
    return inner;
}

/* Adds "wall_time step version tag=value ..." of one event to out, after checking its framing. */
static void read_event(struct reader *r, struct text *out) {
    const unsigned char *head = r->at;
    uint64_t n = read_little(r, 8);
    assert_int_equal(read_little(r, 4), crc32c_masked(head, 8));
    assert_true(n <= (uint64_t)(r->end - r->at));
    struct reader event = {r->at, r->at + n};
    r->at += n;
    assert_int_equal(read_little(r, 4), crc32c_masked(event.at, n));
    while (event.at < event.end) {
        uint64_t key = read_varint(&event);
        if (key == (1 << 3 | 1)) {
            uint64_t bits = read_little(&event, 8);
            double time;
            memcpy(&time, &bits, 8);
            text_addf(out, "[%g", time);
        } else if (key == (2 << 3 | 0)) {
            text_addf(out, " step %lld", (long long)read_varint(&event));
        } else if (key == (3 << 3 | 2)) {
            struct reader s = read_bytes(&event);
            text_addf(out, " %.*s", (int)(s.end - s.at), (const char *)s.at);
        } else {
            assert_int_equal(key, 5 << 3 | 2);
            struct reader summary = read_bytes(&event);
            while (summary.at < summary.end) {
                assert_int_equal(read_varint(&summary), 1 << 3 | 2);
                struct reader value = read_bytes(&summary);
                assert_int_equal(read_varint(&value), 1 << 3 | 2);
                struct reader tag = read_bytes(&value);
                assert_int_equal(read_varint(&value), 2 << 3 | 5);
                uint32_t bits = (uint32_t)read_little(&value, 4);
                float x;
                memcpy(&x, &bits, 4);
                text_addf(out, " %.*s=%g", (int)(tag.end - tag.at), (const char *)tag.at, (double)x);
                assert_true(value.at == value.end);
            }
        }
    }
    text_add(out, "]");
}

static void test_event_file(void **state) {
    struct err e = {0};
    char *dir = path_join(*state, "runs/one");
    struct tensorboard *t = tensorboard_open(dir, 1.0, &e), *again;
    assert_non_null(t);
    const struct scalar two[] = {{"train/loss", 1.5}, {"train/lr", -0.25}};
    assert_int_equal(tensorboard_write(t, 1, 2.0, two, 2, &e), ST_OK);
    assert_int_equal(tensorboard_write(t, 300, 3.5, two, 1, &e), ST_OK);
    again = tensorboard_open(dir, 1.0, &e); // a run that goes on has a file of its own
    assert_non_null(again);
    assert_string_not_equal(tensorboard_path(t), tensorboard_path(again));
    assert_int_equal(strncmp(path_name(tensorboard_path(t)), "events.out.tfevents.0000000001.", 31), 0);
    struct text out = {0};
    struct file_map m;
    assert_int_equal(file_map_open(&m, tensorboard_path(t), &e), ST_OK);
    struct reader r = {(const unsigned char *)m.data, (const unsigned char *)m.data + m.size};
    while (r.at < r.end) read_event(&r, &out);
    assert_string_equal(text_str(&out),
                        "[1 brain.Event:2][2 step 1 train/loss=1.5 train/lr=-0.25][3.5 step 300 train/loss=1.5]");
    file_map_close(&m);
    text_free(&out);
    tensorboard_close(t);
    tensorboard_close(again);
    free(dir);
}

static void test_event_file_that_cannot_be(void **state) {
    struct err e = {0};
    char *file = path_join(*state, "file");
    assert_int_equal(file_write(file, "x", 1, &e), ST_OK);
    assert_null(tensorboard_open(file, 1.0, &e));
    assert_int_equal(e.code, ST_FAIL);
    tensorboard_close(NULL);
    free(file);
}

/* Every tag that is opened is closed in order, attributes are quoted, and no bare & or < is left. */
static void check_form(const char *s) {
    char stack[64][24];
    int depth = 0;
    s = strstr(s, "<html");
    assert_non_null(s);
    const char *style = strstr(s, "<style>"), *style_end = strstr(s, "</style>");
    for (; *s; s++) {
        if (s == style) s = style_end, depth += snprintf(stack[depth], 24, "style") > 0;
        if (*s == '&') {
            const char *semicolon = strchr(s, ';');
            assert_true(semicolon && semicolon - s < 7);
        }
        assert_true(*s != '>');
        if (*s != '<') continue;
        bool close = s[1] == '/';
        const char *name = s + 1 + close;
        size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789");
        assert_true(n > 0 && n < 24);
        int quotes = 0;
        for (s = name + n; *s && (*s != '>' || quotes % 2); s++) {
            assert_true(*s != '<');
            quotes += *s == '"';
        }
        assert_true(*s == '>' && quotes % 2 == 0);
        if (s[-1] == '/') continue;
        if (close) {
            assert_true(depth > 0 && strlen(stack[depth - 1]) == n && strncmp(stack[depth - 1], name, n) == 0);
            depth--;
        } else {
            assert_true(depth < 64);
            snprintf(stack[depth++], 24, "%.*s", (int)n, name);
        }
    }
    assert_int_equal(depth, 0);
}

static char *write_report(const char *dir, const char *log, const char *config, struct report_input *in,
                          struct err *e) {
    char *log_path = path_join(dir, "log.jsonl"), *config_path = path_join(dir, "config.yaml");
    char *path = path_join(dir, "report.html"), *page = NULL;
    size_t size;
    assert_int_equal(file_write(log_path, log, strlen(log), e), ST_OK);
    in->log_path = log_path;
    if (config) {
        assert_int_equal(file_write(config_path, config, strlen(config), e), ST_OK);
        in->config_path = config_path;
    }
    if (report_write(in, path, e) == ST_OK) assert_int_equal(file_read(path, &page, &size, e), ST_OK);
    free(log_path), free(config_path), free(path);
    return page;
}

static void test_report(void **state) {
    struct err e = {0};
    struct text log = {0};
    for (int i = 1; i <= 200; i++) {
        text_addf(
            &log,
            "{\"step\": %d, \"epoch\": %g, \"loss\": %g, \"grad_norm\": %g, \"learning_rate\": %g, \"tokens\": 2048, "
            "\"tokens_per_second\": %d, \"memory\": 1073741824}\n",
            i, i / 100.0, 0.5 + 2.0 / i, 1.0 / i, 2e-4 * (1 - i / 200.0), 3000 + i % 7);
        if (i % 50 == 0) text_addf(&log, "{\"step\": %d, \"eval_loss\": %g}\n", i, 0.75 + 1.0 / i);
    }
    text_add(&log, "{\"step\": 201, \"lo");
    struct report_sample sample = {"Say hi", "no", "hi"};
    struct report_input in = {.title = "My run", .samples = &sample, .sample_count = 1};
    char *page = write_report(*state, text_str(&log), "lora_r: 16\ntarget_modules: [q_proj, v_proj]\n", &in, &e);
    assert_string_equal(e.text, "");
    assert_non_null(page);
    check_form(page);
    int charts = 0, marks = 0;
    for (const char *p = page; (p = strstr(p, "<svg ")); p++) charts++;
    for (const char *p = page; (p = strstr(p, "<circle class=\"mark\"")); p++) marks++;
    assert_int_equal(charts, 4);
    assert_int_equal(marks, 4 + 1); // and one in the legend
    const char *curve = strstr(page, "<polyline class=\"faint\" points=\"");
    assert_non_null(curve);
    int points = 0;
    for (const char *p = strchr(curve + 20, '=') + 2; *p != '"'; p++) points += *p == ',';
    assert_int_equal(points, 200);
    assert_non_null(strstr(page, "<b>200</b><span>steps</span>"));
    assert_non_null(strstr(page, "<b>2.5</b><span>first loss</span>"));
    assert_non_null(strstr(page, "<b>409.6k</b><span>tokens</span>"));
    assert_non_null(strstr(page, "<b>0.755</b><span>best eval loss</span>"));
    assert_non_null(strstr(page, "<b>1 GiB</b>"));
    assert_non_null(strstr(page, "<th scope=\"row\">lora_r</th><td>16</td>"));
    assert_non_null(strstr(page, "[&quot;q_proj&quot;, &quot;v_proj&quot;]"));
    assert_non_null(strstr(page, "before training"));
    assert_null(strstr(page, "http"));
    assert_null(strstr(page, "<script"));
    free(page);
    text_free(&log);
}

/* Two outputs of three rows: the points lie where one scale for both axes puts them, and one that is no number is left
 * out. */
static void test_report_of_a_head(void **state) {
    struct err e = {0};
    float given[] = {1, 10, 2, 20, 3, 30}, predicted[] = {1, NAN, 3, 20, 2, 30};
    struct outcome o = {.problem = PROBLEM_REGRESSION, .rows = 3, .outputs = 2, .labels = 2};
    o.given = given, o.predicted = predicted;
    const char *names[] = {"quality <b>", "motion"};
    struct report_input in = {.outcome = &o, .output_names = names};
    char *page = write_report(*state, "{\"step\": 1, \"loss\": 2}\n", NULL, &in, &e);
    assert_non_null(page);
    check_form(page);
    int spots = 0, equal = 0;
    for (const char *p = page; (p = strstr(p, "<circle class=\"spot\"")); p++) {
        double x, y;
        assert_int_equal(sscanf(p, "<circle class=\"spot\" cx=\"%lf\" cy=\"%lf\"", &x, &y), 2);
        double across = (x - 62) / (560 - 24 - 62), up = (260 - 28 - y) / (260 - 28 - 40); // parts of the axes
        spots++, equal += fabs(across - up) < 1e-3;
    }
    assert_int_equal(spots, 5);
    assert_int_equal(equal, 3); // those with what was wanted
    assert_non_null(strstr(page, "quality &lt;b&gt;"));
    assert_non_null(strstr(page, "spearman 0.5000, mean squared error 0.6667"));
    free(page);
}

static void test_report_of_hostile_strings(void **state) {
    struct err e = {0};
    struct report_sample sample = {"</pre><script>alert(1)</script>", NULL, "a\x01\x02 \xff & \"'\xe2\x82"};
    struct report_input in = {.title = "</title><img src=x onerror=alert(1)>", .samples = &sample, .sample_count = 1};
    char *page =
        write_report(*state, "{\"step\": 1, \"loss\": 1}\n", "\"<b>\": \"</td><script>\"\nlist: [\"<i>\"]\n", &in, &e);
    assert_non_null(page);
    check_form(page);
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "<b><"));
    assert_non_null(strstr(page, "a\xEF\xBF\xBD\xEF\xBF\xBD \xEF\xBF\xBD &amp; &quot;&#39;\xEF\xBF\xBD\xEF\xBF\xBD<"));
    assert_int_equal(utf8_valid_prefix(page, strlen(page)), strlen(page));
    free(page);
}

static void test_report_of_odd_logs(void **state) {
    static const char *const logs[] = {
        "",
        "\n\n",
        "{\"step\": 1}\n",
        "{\"loss\": 1}\n",
        "{\"step\": 5, \"loss\": 0}\n",
        "{\"step\": 1, \"loss\": null}\n",
        "{\"step\": 1, \"loss\": 1e300}\n{\"step\": 2, \"loss\": -1e300}\n",
        "{\"step\": 1, \"loss\": \"x\"}\n",
        "{\"step\": 1, \"loss\": 1e-320}\n{\"step\": 2, \"loss\": 0}\n",
        "{\"step\": 8e299, \"loss\": 1}\n{\"step\": 9e299, \"loss\": 1}\n",
        "{\"step\": 1, \"loss\": 1}\n{\"step\": 1.00000000001, \"loss\": 1}\n",
        "{\"step\": 1, \"loss\": 1}\n{\"step\": 1e18, \"loss\": 3}\n",
        "{\"step\": 1e17, \"loss\": 1}\n{\"step\": 100000000000000016, \"loss\": 3}\n",
        "{\"step\": 3, \"eval_loss\": 1}\n",
    };
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++) {
        struct err e = {0};
        struct report_input in = {0};
        char *page = write_report(*state, logs[i], NULL, &in, &e);
        assert_non_null(page);
        check_form(page);
        assert_null(strstr(page, "nan"));
        assert_true(strlen(page) < 100000);
        free(page);
    }
    static const char *const broken[] = {"{\n", "[1]\n", "{\"step\": \"x\", \"loss\": 1}\n",
                                         "{\"step\": 1}\nx\n{\"step\": 2}\n"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        struct err e = {0};
        struct report_input in = {0};
        assert_null(write_report(*state, broken[i], NULL, &in, &e));
        assert_non_null(strstr(e.text, i == 3 ? "log.jsonl line 2" : "log.jsonl line 1"));
    }
}

static void test_run_that_went_back(void **state) {
    struct err e = {0};
    struct run_log l;
    char *path = path_join(*state, "log.jsonl");
    const char log[] =
        "{\"step\":1,\"loss\":9}\n{\"step\":2,\"loss\":8}\n{\"step\":3,\"loss\":7}\n{\"step\":2,\"loss\":6}\n";
    assert_int_equal(file_write(path, log, strlen(log), &e), ST_OK);
    assert_int_equal(run_log_read(&l, path, &e), ST_OK);
    assert_int_equal(l.column[LOG_LOSS].count, 2);
    assert_true(l.column[LOG_LOSS].points[1].step == 2 && l.column[LOG_LOSS].points[1].value == 6);
    run_log_free(&l);
    free(path);
}

/* A long run gives a small page that still shows its one spike. */
static void test_long_run(void **state) {
    struct err e = {0};
    struct text log = {0};
    struct report_input in = {0};
    for (int i = 1; i <= 50000; i++) text_addf(&log, "{\"step\": %d, \"loss\": %d}\n", i, i == 31234 ? 100 : 1);
    char *page = write_report(*state, text_str(&log), NULL, &in, &e);
    assert_non_null(page);
    assert_true(strlen(page) < 40000);
    assert_non_null(strstr(page, ",40.0 ")); // the spike reaches the top of the picture
    free(page);
    text_free(&log);
}

static void test_numbers_for_people(void **state) {
    (void)state;
    static const struct {
        double x;
        const char *text;
    } rows[] = {{0, "0"},          {0.0002, "2e-4"},  {1.5e-10, "1.5e-10"}, {0.25, "0.25"},         {1234, "1234"},
                {12345, "12.35k"}, {2500000, "2.5M"}, {-0.5, "-0.5"},       {-1.25e-5, "-1.25e-5"}, {1e20, "1e20"},
                {3.14159, "3.142"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct text t = {0};
        chart_number(&t, rows[i].x);
        assert_string_equal(text_str(&t), rows[i].text);
        text_free(&t);
    }
}

static void test_model_card(void **state) {
    struct err e = {0};
    const char *const datasets[] = {"some/data", "./my data.json"};
    const struct card_row settings[] = {{"lora_r", "16"}, {"evil|name", "<b>\n`x` | *y*"}},
                          results[] = {{"eval_loss", "1.25"}};
    struct model_card c = {.name = "my-adapter",
                           .base_model = "meta-llama/Llama-3.2-1B",
                           .method = "QLoRA",
                           .pipeline_tag = "text-generation",
                           .quant_type = "nf4",
                           .datasets = datasets,
                           .dataset_count = 2,
                           .settings = settings,
                           .setting_count = 2,
                           .results = results,
                           .result_count = 1};
    char *path = path_join(*state, "README.md"), *text;
    size_t size;
    assert_int_equal(model_card_write(&c, path, &e), ST_OK);
    assert_int_equal(file_read(path, &text, &size, &e), ST_OK);
    assert_int_equal(strncmp(text, "---\n", 4), 0);
    const char *end = strstr(text + 4, "\n---\n");
    assert_non_null(end);
    cJSON *front = yaml_parse(text + 4, (size_t)(end + 1 - text - 4), "front matter", &e);
    assert_non_null(front);
    char *flat = json_text(front, true);
    assert_string_equal(flat,
                        "{\"base_model\": \"meta-llama/Llama-3.2-1B\", \"library_name\": \"peft\", \"pipeline_tag\": "
                        "\"text-generation\", \"tags\": [\"base_model:adapter:meta-llama/Llama-3.2-1B\", \"qlora\", "
                        "\"graft\"], \"datasets\": [\"some/data\"]}");
    assert_non_null(strstr(text, "# my-adapter\n"));
    assert_non_null(strstr(text, "| lora\\_r | 16 |\n"));
    assert_non_null(strstr(text, "| evil\\|name | &lt;b\\> \\`x\\` \\| \\*y\\* |\n"));
    assert_non_null(strstr(text, "PeftModel.from_pretrained(base, \"my-adapter\")"));
    assert_non_null(strstr(text, "bnb_4bit_quant_type=\"nf4\""));
    free(flat), free(text), free(path);
    cJSON_Delete(front);
}

static void test_model_card_of_hostile_strings(void **state) {
    (void)state;
    struct err e = {0};
    struct text t = {0};
    struct model_card c = {.name = "x\n---\n# y", .base_model = "/a/b\"\n```\nimport os", .license = "mit\ntags: [x]"};
    model_card_text(&c, &t);
    const char *end = strstr(t.data + 4, "\n---\n");
    cJSON *front = yaml_parse(t.data + 4, (size_t)(end + 1 - t.data - 4), "front matter", &e);
    assert_non_null(front);
    assert_null(json_get(front, "base_model"));
    assert_string_equal(json_get(front, "license")->valuestring, "mit\ntags: [x]");
    assert_int_equal(cJSON_GetArraySize(json_get(front, "tags")), 1);
    int fences = 0;
    for (const char *p = t.data; (p = strstr(p, "\n```")); p++) fences++;
    assert_int_equal(fences, 2);
    assert_null(strstr(t.data, "\n# y"));
    cJSON_Delete(front);
    text_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksums),
        FOLDER_TEST(test_event_file),
        FOLDER_TEST(test_event_file_that_cannot_be),
        FOLDER_TEST(test_report),
        FOLDER_TEST(test_report_of_a_head),
        FOLDER_TEST(test_report_of_hostile_strings),
        FOLDER_TEST(test_report_of_odd_logs),
        FOLDER_TEST(test_run_that_went_back),
        FOLDER_TEST(test_long_run),
        cmocka_unit_test(test_numbers_for_people),
        FOLDER_TEST(test_model_card),
        cmocka_unit_test(test_model_card_of_hostile_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
