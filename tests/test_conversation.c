/* Mantis' templates: the text they write and the labels they give. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/batch.h"
#include "base/memory.h"
#include "data/conversation.h"
#include "data/jinja.h"
#include "data/prompt.h"

static const struct turn TURNS[] = {{false, "Q1"}, {true, "A1"}, {false, "Q2"}, {true, "A2"}};

#define SYSTEM_LLAMA                                                                                                   \
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a pirate chatbot who always responds in pirate "            \
    "speak!<|eot_id|>"
#define USER_LLAMA      "<|start_header_id|>user<|end_header_id|>\n\n"
#define ASSISTANT_LLAMA "<|start_header_id|>assistant<|end_header_id|>\n\n"

static const struct conversation *find(const char *name) {
    struct err e = {0};
    const struct conversation *c = conversation_find(name, &e);
    assert_non_null(c);
    return c;
}

static void assert_renders(const char *name, size_t turns, bool open, const char *want) {
    struct text t = {0};
    conversation_render(find(name), TURNS, turns, open, &t);
    assert_string_equal(text_str(&t), want);
    text_free(&t);
}

static void test_rendered_text(void **state) {
    (void)state;
    assert_renders("llama_3", 2, false, SYSTEM_LLAMA USER_LLAMA "Q1<|eot_id|>" ASSISTANT_LLAMA "A1<|eot_id|>");
    assert_renders("llama_3", 1, true, SYSTEM_LLAMA USER_LLAMA "Q1<|eot_id|>" ASSISTANT_LLAMA);
    assert_renders("idefics_2", 2, false, "User:Q1<end_of_utterance>\nAssistant:A1<end_of_utterance>\n");
    assert_renders("idefics_2", 3, true,
                   "User:Q1<end_of_utterance>\nAssistant:A1<end_of_utterance>\nUser:Q2<end_of_utterance>\nAssistant:");
    assert_renders("idefics_3", 1, true, "<|begin_of_text|>User:Q1<end_of_utterance>\nAssistant:");
    assert_renders("qwen2_vl", 2, false,
                   "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
                   "<|im_start|>assistant\nA1<|im_end|>\n");
    assert_renders("plain", 2, false, "A1\n");
}

/* The literal system strings, by their length and by what follows them. */
static void test_system_strings(void **state) {
    (void)state;
    struct text t = {0};
    conversation_render(find("mllava_v1"), TURNS, 2, false, &t);
    assert_string_equal(text_str(&t) + 156, "</s>USER: Q1</s>ASSISTANT: A1</s>");
    text_clear(&t);
    conversation_render(find("mfuyu_v1"), TURNS, 2, false, &t);
    assert_string_equal(text_str(&t) + 186, "\nUSER: Q1<0x04>ASSISTANT: A1|ENDOFTEXT|");
    text_clear(&t);
    conversation_render(find("llama_3"), TURNS, 0, false, &t);
    assert_string_equal(text_str(&t) + 105, "<|eot_id|>");
    text_free(&t);
}

static void test_unknown_template(void **state) {
    (void)state;
    struct err e = {0};
    assert_null(conversation_find("lama_3", &e));
    assert_non_null(strstr(e.text, "did you mean llama_3?"));
    assert_non_null(strstr(e.text, "mfuyu_v1"));
}

static struct tokenizer *load(void) {
    struct err e = {0};
    struct tokenizer *t = tokenizer_load("tests/golden/data/model", &e);
    if (!t) fail_msg("%s", e.text);
    return t;
}

/* The trained parts of the rendered turns as text, each between bars; cut: ids left out at the end. */
static char *trained(const char *name, size_t turns, size_t cut) {
    struct err e = {0};
    struct tokenizer *t = load();
    struct text text = {0}, out = {0};
    struct ids ids = {0};
    conversation_render(find(name), TURNS, turns, false, &text);
    assert_int_equal(tokenizer_encode(t, text_str(&text), text.len, true, &ids, &e), ST_OK);
    size_t n = ids.len - cut;
    int32_t *labels = mem_alloc(n * sizeof *labels);
    if (conversation_labels(find(name), t, ids.data, n, -1, labels, &e) != ST_OK) fail_msg("%s", e.text);
    text_clear(&text);
    for (size_t i = 0; i < n; i++) {
        bool on = labels[i] != IGNORED, was_on = i && labels[i - 1] != IGNORED;
        if (on) assert_int_equal(labels[i], ids.data[i]);
        if (on != was_on) text_add_char(&out, '|');
        if (on) tokenizer_decode(t, &ids.data[i], 1, false, &out);
    }
    free(labels);
    ids_free(&ids), text_free(&text), tokenizer_free(t);
    text_add_char(&out, '.');
    return out.data;
}

static void assert_trained(const char *name, size_t turns, size_t cut, const char *want) {
    char *got = trained(name, turns, cut);
    assert_string_equal(got, want);
    free(got);
}

static void test_trained_parts(void **state) {
    (void)state;
    assert_trained("llama_3", 2, 0, "|" ASSISTANT_LLAMA "A1<|eot_id|>.");
    assert_trained("llama_3", 4, 0, "|" ASSISTANT_LLAMA "A1<|eot_id|>||" ASSISTANT_LLAMA "A2<|eot_id|>.");
}

static void test_trained_parts_of_others(void **state) {
    (void)state;
    assert_trained("mllava_v1", 2, 0, "|ASSISTANT: A1</s>.");
    assert_trained("idefics_2", 4, 0, "|\nAssistant:A1<end_of_utterance>||\nAssistant:A2<end_of_utterance>|.");
    assert_trained("qwen2_vl", 2, 0, "|\n<|im_start|>assistant\nA1<|im_end|>|.");
    assert_trained("mfuyu_v1", 4, 0, "|ASSISTANT: A1|ENDOFTEXT|||ASSISTANT: A2|ENDOFTEXT|.");
    assert_trained("plain", 2, 0, "|<|begin_of_text|>A1\n.");
}

/* An answer that was cut is trained to where it ends; a conversation that ends with a question trains no more. */
static void test_cut_answers(void **state) {
    (void)state;
    assert_trained("llama_3", 2, 2, "|" ASSISTANT_LLAMA "A.");
    assert_trained("mfuyu_v1", 4, 2, "|ASSISTANT: A1|ENDOFTEXT|||ASSISTANT: A.");
    assert_trained("llama_3", 3, 0, "|" ASSISTANT_LLAMA "A1<|eot_id|>|.");
}

static void test_label_errors(void **state) {
    (void)state;
    struct tokenizer *t = load();
    int32_t labels[4], separator = tokenizer_id(t, "<0x04>"), closing = tokenizer_id(t, "|ENDOFTEXT|");
    struct err e = {0};
    int32_t ids[4] = {separator, closing, closing, 5};
    assert_int_equal(conversation_labels(find("mfuyu_v1"), t, ids, 4, -1, labels, &e), ST_FAIL);
    assert_non_null(strstr(e.text, "1 answers begin"));
    tokenizer_free(t);
}

static void test_pictures_are_not_trained_in_captions(void **state) {
    (void)state;
    struct tokenizer *t = load();
    struct err e = {0};
    int32_t labels[3], ids[3] = {5, 99, 7};
    assert_int_equal(conversation_labels(find("plain"), t, ids, 3, 99, labels, &e), ST_OK);
    assert_int_equal(labels[0], 5);
    assert_int_equal(labels[1], IGNORED);
    assert_int_equal(labels[2], 7);
    tokenizer_free(t);
}

/* The jinja template of each, rendered, is what the template itself writes. */
static void test_jinja(void **state) {
    (void)state;
    static const char *const names[] = {"llama_3", "mllava_v1", "mfuyu_v1", "idefics_2", "idefics_3", "qwen2_vl"};
    for (int i = 0; i < 6; i++) {
        for (size_t turns = 1; turns <= 4; turns++) {
            struct err e = {0};
            struct text source = {0}, want = {0}, got = {0};
            const struct conversation *c = find(names[i]);
            cJSON *vars = cJSON_CreateObject(), *messages = cJSON_AddArrayToObject(vars, "messages");
            for (size_t k = 0; k < turns; k++)
                messages_add(messages, TURNS[k].assistant ? "assistant" : "user", TURNS[k].text);
            cJSON_AddBoolToObject(vars, "add_generation_prompt", turns % 2);
            conversation_jinja(c, &source);
            conversation_render(c, TURNS, turns, turns % 2, &want);
            struct jinja *j = jinja_new(text_str(&source), names[i], &e);
            if (!j || jinja_render(j, vars, &got, &e) != ST_OK) fail_msg("%s", e.text);
            assert_string_equal(text_str(&got), text_str(&want));
            jinja_free(j);
            cJSON_Delete(vars);
            text_free(&source), text_free(&want), text_free(&got);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rendered_text),
        cmocka_unit_test(test_system_strings),
        cmocka_unit_test(test_unknown_template),
        cmocka_unit_test(test_jinja),
        cmocka_unit_test(test_trained_parts),
        cmocka_unit_test(test_trained_parts_of_others),
        cmocka_unit_test(test_cut_answers),
        cmocka_unit_test(test_label_errors),
        cmocka_unit_test(test_pictures_are_not_trained_in_captions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
