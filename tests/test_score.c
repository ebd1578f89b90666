/* Classification heads: their losses against the formulas, the whole model against what transformers and PEFT give
 * (golden/make_score.py), pooling, labels by name, metrics, and a training from a base without a head. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "data/dataset.h"
#include "data/dataset_parts.h"
#include "lora/head.h"
#include "lora/metrics.h"
#include "tests/adapter_fixture.h"
#include "tests/op_check.h"
#include "tests/training.h"

#define GOLDEN "tests/golden/score"

/* --- ops --------------------------------------------------------------------------------------------------------- */

static double loss_of(double x, double y, bool binary) {
    return binary ? -y * log(1 / (1 + exp(-x))) - (1 - y) * log(1 / (1 + exp(x))) : (x - y) * (x - y);
}

/* shape: M, n, range of x, whether binary. */
static void case_head_loss(struct check *c, const int64_t *shape) {
    static const double STEP = 0x1p-13; // error of the difference about STEP^2 / 6 and 2^-53 loss / STEP
    int64_t M = shape[0], n = shape[1];
    bool binary = shape[3];
    double range = (double)shape[2], scale = 0.25;
    struct tensor x = check_input2(c, F32, M, n, -range, range), y = check_input2(c, F32, M, n, 0, binary ? 1 : 4);
    struct tensor loss = check_output1(c, F32, M), again = check_output1(c, F32, M), dx = check_output2(c, F32, M, n);
    double *vx = check_values(c, &x), *vy = check_values(c, &y), *want = check_zeros(c, M), *g = check_zeros(c, M * n);
    double *size = check_zeros(c, M * n), *loss_size = check_zeros(c, M);
    for (int64_t i = 0; i < M * n; i++) {
        double up = loss_of(vx[i] + STEP, vy[i], binary), down = loss_of(vx[i] - STEP, vy[i], binary);
        want[i / n] += loss_of(vx[i], vy[i], binary) / (double)n;
        loss_size[i / n] += (1 + fabs(vx[i]) * (1 + fabs(vx[i]))) / (double)n;
        g[i] = scale * (up - down) / (2 * STEP) / (double)n;
        size[i] = scale * (1 + fabs(vx[i]) + fabs(vy[i])) / (double)n;
    }
    void (*op)(struct backend *, const struct tensor *, const struct tensor *, const struct tensor *,
               const struct tensor *, float) = binary ? op_binary_cross_entropy : op_squared_error;
    op(c->be, &loss, &dx, &x, &y, (float)scale);
    op(c->be, &again, NULL, &x, &y, 1);
    check_near(c, "loss", &loss, want, loss_size, 4);
    check_equal(c, "loss without gradient", &again, check_values(c, &loss));
    check_near(c, "dx", &dx, g, size, 4);
}

static void test_losses(void **state) {
    (void)state;
    RUN(case_head_loss, {1, 1, 3, 0}, {33, 5, 4, 0}, {3, 129, 2, 0}, {1, 1, 3, 1}, {33, 5, 9, 1}, {1029, 31, 3, 1});
}

/* --- the whole model --------------------------------------------------------------------------------------------- */

static const void *golden(const struct st_set *s, const char *name) {
    const struct st_entry *t = st_find(s, name);
    if (!t) fail_msg("%s is not there", name);
    return t->data;
}

/* Sums of some hundred terms in F32, in another order than torch's: 1e-5 of the largest number. */
static void assert_like(const char *what, const float *got, const float *want, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= 1e-5 * most + 1e-9))
            fail_msg("%s[%lld] is %g, wanted %g", what, (long long)i, (double)got[i], (double)want[i]);
}

/* The rows of the fixture as data/ would hand them over. */
static void golden_batch(struct batch *b, const struct st_set *s, const char *problem, int64_t rows) {
    char *name = mem_format("%s:labels", problem);
    const float *labels = golden(s, name);
    const int64_t *offsets = golden(s, "offsets");
    const int32_t *ids = golden(s, "ids");
    int64_t width = st_find(s, name)->dim[1];
    struct row *r = mem_alloc((size_t)rows * sizeof *r);
    const struct data_family f = {.family = FAMILY_TEXT, .pad_token = 7};
    for (int64_t i = 0; i < rows; i++) {
        int64_t n = offsets[i + 1] - offsets[i];
        for (int64_t k = 0; k < n; k++) ids_add(&r[i].ids, ids[offsets[i] + k]);
        r[i].labels = mem_alloc((size_t)n * sizeof *r[i].labels);
        for (int64_t k = 0; k < n; k++) r[i].labels[k] = IGNORED;
        r[i].positions = n, r[i].value_count = width, r[i].values = mem_alloc((size_t)width * sizeof(float));
        memcpy(r[i].values, labels + i * width, (size_t)width * sizeof(float));
    }
    batch_build(b, r, rows, &f);
    for (int64_t i = 0; i < rows; i++) row_free(&r[i]);
    free(r), free(name);
}

static void assert_gradient(const struct adapter *a, const struct st_set *s, const char *problem, const char *key) {
    char *name = mem_format("%s:%s", problem, key);
    const struct tensor *g = &find_trained(a, key)->grad;
    assert_like(name, g->data, golden(s, name), tensor_count(g)); // the CPU's memory is the host's
    free(name);
}

static void check_problem(struct fixture *f, const struct st_set *s, enum problem problem) {
    const int64_t rows = st_find(s, "outputs")->dim[0];
    const char *name = problem_name(problem);
    struct load_options load = {.quantize = {.type = F32}, .head = {.problem = problem, .num_labels = 3, .seed = 1}};
    cJSON *modules = json_of("[\"q_proj\", \"down_proj\"]");
    const struct adapter_options o = {.r = 3, .alpha = 5, .target_modules = modules, .task_type = "SEQ_CLS"};
    struct adapter *a = NULL;
    struct workspace *w = NULL;
    struct batch b;
    assert_int_equal(model_load(&f->model, MODELS "llama/model", f->be, &load, &f->e), ST_OK);
    assert_int_equal(adapter_new(&a, f->model, &o, &f->e), ST_OK);
    adapter_read(a, GOLDEN "/adapter", &f->e);
    expect_good(&f->e);
    golden_batch(&b, s, name, rows);
    enum keep keep[8] = {KEEP_ALL, KEEP_ALL, KEEP_ALL, KEEP_ALL, KEEP_ALL, KEEP_ALL, KEEP_ALL, KEEP_ALL};
    struct workspace_options space = {
        .limits = {.N = b.N, .rows = rows, .scored = rows, .longest = b.N}, .train = true, .act = F32, .keep = keep};
    assert_int_equal(workspace_new(&w, f->model, &space, &f->e), ST_OK);
    float sum = 0, want = 0;
    struct tensor total = tensor_over1(&sum, F32, 1);
    char *losses = mem_format("%s:loss", name);
    model_step(w, &b, 0, 0, 1.0f / (float)rows, &total);
    assert_like("outputs", w->acts.outputs.data, golden(s, "outputs"), rows * 3);
    assert_like("loss", w->acts.loss.data, golden(s, losses), rows);
    for (int64_t i = 0; i < rows; i++) want += ((const float *)golden(s, losses))[i];
    assert_like("sum", &sum, &want, 1);
    assert_gradient(a, s, name, "base_model.model.score.weight");
    assert_gradient(a, s, name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_gradient(a, s, name, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    free(losses);
    batch_free(&b);
    workspace_free(w);
    adapter_free(a);
    model_free(f->model);
    f->model = NULL;
    cJSON_Delete(modules);
}

static void test_as_transformers(void **state) {
    struct fixture *f = *state;
    struct st_set s = {0};
    assert_int_equal(st_open_file(&s, GOLDEN "/expected.safetensors", &f->e), ST_OK);
    check_problem(f, &s, PROBLEM_REGRESSION);
    check_problem(f, &s, PROBLEM_SINGLE_LABEL);
    check_problem(f, &s, PROBLEM_MULTI_LABEL);
    st_close(&s);
}

static void test_foreign_adapter_tells_of_its_head(void **state) {
    struct fixture *f = *state;
    struct head_info h;
    assert_int_equal(head_info_read(&h, GOLDEN "/adapter", &f->e), ST_OK);
    assert_int_equal(h.problem, PROBLEM_UNSAID);
    assert_int_equal(h.num_labels, 3);
    assert_false(h.bias);
    head_info_free(&h);
    assert_int_equal(head_info_read(&h, MODELS "lora/adapter", &f->e), ST_OK);
    assert_int_equal(h.problem, PROBLEM_GENERATION);
    head_info_free(&h);
}

/* --- pooling ----------------------------------------------------------------------------------------------------- */

static int64_t pooled(const int32_t *ids, int64_t n, enum pooling rule, enum family family) {
    const struct data_family f = {
        .family = family, .image_token = 99, .tokens_per_image = 4, .pad_token = 0, .pooling = rule};
    struct row r = {.value_count = 1, .values = mem_alloc(sizeof(float))};
    struct batch b;
    for (int64_t i = 0; i < n; i++) {
        ids_add(&r.ids, ids[i]);
        r.positions += family == FAMILY_MLLAVA && ids[i] == 99 ? 4 : 1;
    }
    r.labels = mem_alloc((size_t)n * sizeof *r.labels);
    for (int64_t i = 0; i < n; i++) r.labels[i] = IGNORED;
    batch_build(&b, &r, 1, &f);
    int64_t at = b.pooled[0];
    batch_free(&b);
    row_free(&r);
    return at;
}

static void test_pooling(void **state) {
    (void)state;
    static const struct {
        int32_t ids[6];
        int64_t n, last, first; // by the newer and the older rule
    } cases[] = {
        {{5, 6, 7}, 3, 2, 2},    {{5}, 1, 0, 0}, {{5, 6, 0, 0}, 4, 1, 1}, {{5, 0, 7, 8}, 4, 3, 0},
        {{0, 6, 7, 8}, 4, 3, 3}, {{0}, 1, 0, 0}, {{0, 0, 0}, 3, 0, 2},    {{5, 6, 0, 8, 0}, 5, 3, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(pooled(cases[i].ids, cases[i].n, POOL_LAST_NOT_PAD, FAMILY_TEXT), cases[i].last);
        assert_int_equal(pooled(cases[i].ids, cases[i].n, POOL_BEFORE_FIRST_PAD, FAMILY_TEXT), cases[i].first);
    }
    const int32_t pictures[] = {5, 99, 6, 99}, padded[] = {99, 0, 6};
    assert_int_equal(pooled(pictures, 4, POOL_LAST_NOT_PAD, FAMILY_MLLAVA), 9);
    assert_int_equal(pooled(padded, 3, POOL_BEFORE_FIRST_PAD, FAMILY_MLLAVA), 3);
    assert_int_equal(pooled(padded, 3, POOL_LAST_NOT_PAD, FAMILY_MLLAVA), 5);
}

/* --- metrics ----------------------------------------------------------------------------------------------------- */

static struct outcome outcome_of(enum problem p, int64_t rows, int64_t outputs, float *predicted, float *given) {
    return (struct outcome){p, rows, outputs, p == PROBLEM_SINGLE_LABEL ? 1 : outputs, predicted, given};
}

static void assert_metric(const struct outcome *o, const char *name, int64_t column, double want) {
    double got = metric_value(o, metric_find(o->problem, name), column);
    if (!(fabs(got - want) <= 1e-6))
        fail_msg("%s of column %lld is %.9g, wanted %.9g", name, (long long)column, got, want);
}

/* By hand: ranks of x are 1, 2.5, 2.5, 4, of y 2, 1, 3, 4. Of the 6 pairs 4 agree, 1 is contrary, 1 is equal in x. */
static void test_regression_metrics(void **state) {
    (void)state;
    float x[] = {1, 5, 2, 5, 2, 5, 4, 5}, y[] = {2, 1, 1, 2, 3, 3, 4, 4}; // column 1 of x is constant
    struct outcome o = outcome_of(PROBLEM_REGRESSION, 4, 2, x, y);
    assert_metric(&o, "spearman", 0, 3.0 / sqrt(4.5 * 5.0));
    assert_metric(&o, "kendall", 0, 3 / sqrt(5.0 * 6.0));
    assert_metric(&o, "pair_accuracy", 0, 4.5 / 6);
    assert_metric(&o, "pearson", 0, 3.5 / sqrt(4.75 * 5.0));
    assert_metric(&o, "mse", 0, 3.0 / 4);
    assert_metric(&o, "mae", 0, 3.0 / 4);
    assert_true(isnan(metric_value(&o, metric_find(o.problem, "spearman"), 1)));
    assert_metric(&o, "spearman", ALL_COLUMNS, 3.0 / sqrt(4.5 * 5.0)); // the one that is defined
    assert_metric(&o, "pair_accuracy", 1, 0.5);
    assert_metric(&o, "mse", ALL_COLUMNS, (0.75 + (16 + 9 + 4 + 1) / 4.0) / 2);
}

static void test_class_metrics(void **state) {
    (void)state;
    float x[] = {2, 1, 0, 0, 3, 1, 0, 4, 5, 1, 0, 0}, y[] = {0, 1, 1, 0}; // predicted 0, 1, 2, 0
    struct outcome o = outcome_of(PROBLEM_SINGLE_LABEL, 4, 3, x, y);
    assert_metric(&o, "accuracy", ALL_COLUMNS, 0.75);
    assert_metric(&o, "macro_f1", 0, 1);
    assert_metric(&o, "macro_f1", 1, 2.0 / 3);
    assert_metric(&o, "macro_f1", ALL_COLUMNS, (1 + 2.0 / 3 + 0) / 3);
    float p[] = {1, -1, -1, 2, 3, 3}, q[] = {1, 0, 1, 1, 0, 1}; // 1 0, 0 1, 1 1 against 1 0, 1 1, 0 1
    struct outcome m = outcome_of(PROBLEM_MULTI_LABEL, 3, 2, p, q);
    assert_metric(&m, "accuracy", 0, 1.0 / 3);
    assert_metric(&m, "accuracy", 1, 1);
    assert_metric(&m, "macro_f1", ALL_COLUMNS, (0.5 + 1) / 2);
    assert_int_equal(metric_find(PROBLEM_REGRESSION, "accuracy"), -1);
}

static void test_interval(void **state) {
    (void)state;
    float x[40], y[40];
    for (int i = 0; i < 40; i++) x[i] = (float)((i * 17) % 40), y[i] = (float)i + (float)((i * 7) % 5);
    struct outcome o = outcome_of(PROBLEM_REGRESSION, 40, 1, x, y);
    struct interval a = metric_interval(&o, 0, 0, 3), b = metric_interval(&o, 0, 0, 3),
                    c = metric_interval(&o, 0, 0, 4);
    double value = metric_value(&o, 0, 0);
    assert_true(a.low < value && value < a.high && a.high - a.low < 1);
    assert_true(a.low == b.low && a.high == b.high && (a.low != c.low || a.high != c.high));
}

/* --- training, rows, the command line ---------------------------------------------------------------------------- */

static const char *const words[] = {"amber", "kettle", "rocket", "orchard", "violet", "marble", "tunnel"};

static void put_rows(const struct training *t) {
    struct text all = {0};
    for (int i = 0; i < 12; i++) {
        const char *order =
            i % 2 ? "{\"id\": \"r%d\", \"prompt\": \"%s %s\", \"labels\": {\"noise\": %g, \"blur\": %g}}\n"
                  : "{\"id\": \"r%d\", \"prompt\": \"%s %s\", \"labels\": {\"blur\": %g, \"noise\": %g}}\n";
        double blur = 1 + i % 3, noise = 2.5;
        text_addf(&all, order, i, words[i % 3], words[i % 7], i % 2 ? noise : blur, i % 2 ? blur : noise);
    }
    training_put(t, "rows.jsonl", text_str(&all));
    training_put(t, "data.yaml",
                 "data:\n- {path: rows.jsonl, name: r, split: train, format: classification}\n"
                 "- {path: rows.jsonl, name: v, split: val, format: classification}\n");
    text_free(&all);
}

static void put_labelled(const struct training *t, const char *rows) {
    training_put(t, "rows.jsonl", rows);
    training_put(t, "data.yaml", "data:\n- {path: rows.jsonl, name: r, split: train, format: classification}\n");
}

/* The lines that a command prints as JSON; the caller deletes the list. */
static cJSON *json_lines(const struct training *t, const char *line) {
    struct command_result r;
    training_graft(t, line, 60, &r);
    if (r.status != 0) fail_msg("graft %s: %s", line, text_str(&r.err));
    cJSON *list = cJSON_CreateArray();
    for (char *rest = r.out.data, *one; rest && (one = strsep(&rest, "\n"));)
        if (*one) cJSON_AddItemToArray(list, cJSON_Parse(one));
    command_free(&r);
    return list;
}

static double number(const cJSON *o, const char *a, const char *b) {
    const cJSON *v = json_get(o, a);
    if (b) v = json_get(v, b);
    if (!v) fail_msg("no %s%s%s", a, b ? "." : "", b ? b : "");
    return v->valuedouble;
}

static void test_new_head_learns_and_comes_back(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    put_rows(&t);
    training_run(&t, "out",
                 "--problem_type regression --max_steps 60 --learning_rate 0.02 --eval_strategy steps --eval_steps 20 "
                 "--load_best_model_at_end true --metric_for_best_model mae",
                 0, NULL);
    char *words_of_eval =
        mem_format("eval %s/" MODELS "llama/model --adapter out --data data.yaml --json --quiet --dtype f32", t.here);
    char *words_of_score =
        mem_format("score %s/" MODELS "llama/model --adapter out --data data.yaml --split val --json --quiet "
                   "--dtype f32",
                   t.here);
    cJSON *log = training_log(&t, "out"), *eval = json_lines(&t, words_of_eval),
          *score = json_lines(&t, words_of_score), *v;
    double best = INFINITY;
    cJSON_ArrayForEach(v, log) if (json_get(v, "eval_mae")) best = fmin(best, number(v, "eval_mae", NULL));
    assert_true(best < 0.5);
    assert_true(number(eval->child, "metrics", "mae") == best); // the best one was kept, written and read again
    assert_true(number(eval->child, "metrics", "spearman") > 0.8);
    assert_int_equal(cJSON_GetArraySize(score), 12);
    assert_string_equal(json_get(score->child, "outputs")->child->string, "blur");
    assert_true(fabs(number(score->child, "outputs", "noise") - 2.5) < 1);
    cJSON_Delete(log), cJSON_Delete(eval), cJSON_Delete(score);
    free(words_of_eval), free(words_of_score);
    training_close(&t);
}

/* Row 1 names its labels in another order than row 0. */
static void test_labels_are_read_by_name(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    put_rows(&t);
    char *line = mem_format("data data.yaml --model %s/" MODELS "llama/model --split train --row 1 --json", t.here);
    cJSON *out = json_lines(&t, line);
    const cJSON *labels = json_get(json_get(out->child->child, "row"), "labels");
    assert_int_equal(cJSON_GetArraySize(labels), 2);
    assert_true(labels->child->valuedouble == 2 && labels->child->next->valuedouble == 2.5);
    cJSON_Delete(out);
    free(line);
    training_close(&t);
}

/* A model that is trained whole carries its head, its names and its class. */
static void test_whole_model(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    put_rows(&t);
    training_run(&t, "whole", "--problem_type regression --finetuning_type full --eval_strategy steps --eval_steps 12",
                 0, NULL);
    cJSON *log = training_log(&t, "whole");
    cJSON *eval = json_lines(&t, "eval whole --data data.yaml --json --quiet --dtype f32");
    const cJSON *last = cJSON_GetArrayItem(log, cJSON_GetArraySize(log) - 1);
    assert_true(number(eval->child, "loss", NULL) == number(last, "eval_loss", NULL));
    assert_string_equal(json_get(eval->child, "per_label")->child->string, "blur");
    char *path = training_path(&t, "whole/config.json");
    struct err e = {0};
    cJSON *config = json_read(path, &e);
    assert_string_equal(json_get(config, "architectures")->child->valuestring, "LlamaForSequenceClassification");
    assert_string_equal(json_get(json_get(config, "id2label"), "1")->valuestring, "noise");
    cJSON_Delete(config), cJSON_Delete(log), cJSON_Delete(eval);
    free(path);
    training_close(&t);
}

/* A run that is stopped at a checkpoint ends where the run in one piece ends. */
static void test_resumes(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    put_rows(&t);
    training_run(&t, "one", "--problem_type regression --head_learning_rate 0.03", 0, NULL);
    training_run(&t, "two", "--problem_type regression --head_learning_rate 0.03", 0, NULL);
    char *late = training_path(&t, "two/checkpoint-12");
    struct err e = {0};
    assert_int_equal(dir_remove(late, &e), ST_OK); // as if it had been killed after step 9
    free(late);
    training_run(&t, "two", "--problem_type regression --head_learning_rate 0.03", 0, NULL);
    training_same(&t, "one/adapter_model.safetensors", "two/adapter_model.safetensors");
    training_same(&t, "one/label_names.json", "two/label_names.json");
    training_close(&t);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *row, *flags, *says;
    } cases[] = {
        {"{\"id\": \"x\", \"prompt\": \"a\", \"labels\": {\"blur\": 1}}", "", "(id x): label \"noise\" is missing"},
        {"{\"id\": \"x\", \"prompt\": \"a\", \"labels\": {\"blur\": 1, \"noise\": 1, \"more\": 1}}", "",
         "label \"more\" is one too many"},
        {"{\"id\": \"x\", \"prompt\": \"a\", \"labels\": {\"blur\": 1, \"noise\": \"2\"}}", "",
         "label \"noise\" is not a number"},
        {"{\"id\": \"x\", \"prompt\": \"a\", \"labels\": {\"blur\": 1, \"blur\": 1}}", "",
         "label \"noise\" is missing"},
        {"{\"id\": \"x\", \"prompt\": \"a\"}", "", "has no labels"},
        {"{\"id\": \"x\", \"labels\": {\"blur\": 1, \"noise\": 1}}", "", "wanted \"prompt\""},
        {"{\"id\": \"x\", \"prompt\": \"a\", \"labels\": {\"blur\": 1, \"noise\": 1}}", "--num_labels 3",
         "the row has 2 labels"},
        {"{\"id\": \"x\", \"prompt\": \"a\", \"labels\": {\"blur\": 1, \"noise\": 1}}",
         "--metric_for_best_model accuracy", "pair_accuracy"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct training t;
        training_open(&t, LLAMA);
        char *rows = mem_format("{\"id\": \"a\", \"prompt\": \"b\", \"labels\": {\"blur\": 1, \"noise\": 2}}\n%s\n",
                                cases[i].row);
        put_labelled(&t, rows);
        char *flags = mem_format("--problem_type regression %s", cases[i].flags);
        training_run(&t, "out", flags, strstr(cases[i].flags, "metric") ? 2 : 1, cases[i].says);
        free(rows), free(flags);
        training_close(&t);
    }
}

static void test_class_index(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    put_labelled(&t, "{\"id\": \"a\", \"prompt\": \"b\", \"labels\": {\"topic\": 2}}\n");
    training_run(&t, "a", "--problem_type single_label_classification", 2, "num_labels");
    training_run(&t, "b", "--problem_type single_label_classification --num_labels 2", 1, "is 2, wanted a class index");
    training_run(&t, "c", "--problem_type single_label_classification --num_labels 3", 0, NULL);
    training_run(&t, "d", "", 1, "has no head");
    training_close(&t);
}

static void expect_names(const struct training *t, const char *out, const char *const *names, int count) {
    struct err e = {0};
    char *name = mem_format("%s/label_names.json", out), *path = training_path(t, name);
    cJSON *file = json_read(path, &e);
    const cJSON *list = json_get(file, "label_names");
    assert_int_equal(cJSON_GetArraySize(list), count);
    for (int i = 0; i < count; i++) assert_string_equal(cJSON_GetArrayItem(list, i)->valuestring, names[i]);
    cJSON_Delete(file);
    free(name), free(path);
}

static void test_label_names(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    put_rows(&t);
    training_run(&t, "regression", "--problem_type regression --label_names [noise,blur]", 0, NULL);
    expect_names(&t, "regression", (const char *const[]){"noise", "blur"}, 2); // the rows: blur, noise
    training_run(&t, "absent", "--problem_type regression --label_names [noise,hum]", 1, "hum");
    training_run(&t, "without", "--label_names [noise,blur]", 2, "problem_type");
    training_run(&t, "twice", "--problem_type regression --label_names [blur,blur]", 2, "comes twice");
    training_run(&t, "count", "--problem_type regression --num_labels 3 --label_names [blur,noise]", 2,
                 "label_names has 2 names, num_labels is 3");
    put_labelled(&t, "{\"id\": \"a\", \"prompt\": \"b\", \"labels\": {\"topic\": 2}}\n");
    training_run(&t, "classes", "--problem_type single_label_classification --label_names [a,b,c]", 0, NULL);
    expect_names(&t, "classes", (const char *const[]){"a", "b", "c"}, 3);
    training_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses),
        FIXTURE_TEST(test_as_transformers),
        FIXTURE_TEST(test_foreign_adapter_tells_of_its_head),
        cmocka_unit_test(test_pooling),
        cmocka_unit_test(test_regression_metrics),
        cmocka_unit_test(test_class_metrics),
        cmocka_unit_test(test_interval),
        cmocka_unit_test(test_new_head_learns_and_comes_back),
        cmocka_unit_test(test_labels_are_read_by_name),
        cmocka_unit_test(test_whole_model),
        cmocka_unit_test(test_resumes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_class_index),
        cmocka_unit_test(test_label_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
