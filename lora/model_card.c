#include "lora/model_card.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/yaml.h"

/* "name" or "owner/name", as the Hub allows. */
static bool is_hub_name(const char *s) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t first = strspn(s, allowed);
    if (first == 0 || s[0] == '.' || s[0] == '-') return false;
    if (s[first] == 0) return true;
    const char *second = s + first + 1;
    size_t n = strspn(second, allowed);
    return s[first] == '/' && n > 0 && second[n] == 0 && second[0] != '.' && second[0] != '-';
}

/* s as Markdown text of one line: nothing in it can begin markup, HTML or a table cell. */
static void add_plain(struct text *t, const char *s) {
    for (; *s; s++) {
        if ((unsigned char)*s < ' ')
            text_add_char(t, ' ');
        else if (*s == '<')
            text_add(t, "&lt;");
        else if (*s == '&')
            text_add(t, "&amp;");
        else {
            if (strchr("\\`*_{}[]>#|!~", *s)) text_add_char(t, '\\');
            text_add_char(t, *s);
        }
    }
}

static void add_item(cJSON *list, const char *s) { cJSON_AddItemToArray(list, cJSON_CreateString(s)); }

static void add_front_matter(struct text *t, const struct model_card *c) {
    cJSON *o = cJSON_CreateObject();
    bool hub = is_hub_name(c->base_model);
    if (hub) cJSON_AddStringToObject(o, "base_model", c->base_model);
    cJSON_AddStringToObject(o, "library_name", c->whole ? "transformers" : "peft");
    if (c->license) cJSON_AddStringToObject(o, "license", c->license);
    if (c->pipeline_tag) cJSON_AddStringToObject(o, "pipeline_tag", c->pipeline_tag);
    cJSON *tags = cJSON_AddArrayToObject(o, "tags");
    if (hub) {
        char *tag = mem_format("base_model:%s:%s", c->whole ? "finetune" : "adapter", c->base_model);
        add_item(tags, tag);
        free(tag);
    }
    if (c->method) {
        char *tag = mem_text(c->method);
        for (char *p = tag; *p; p++) *p = (char)tolower((unsigned char)*p);
        add_item(tags, tag);
        free(tag);
    }
    add_item(tags, "graft");
    cJSON *datasets = NULL;
    for (size_t i = 0; i < c->dataset_count; i++) {
        if (!is_hub_name(c->datasets[i])) continue;
        if (!datasets) datasets = cJSON_AddArrayToObject(o, "datasets");
        add_item(datasets, c->datasets[i]);
    }
    char *yaml = yaml_text(o);
    text_addf(t, "---\n%s---\n\n", yaml);
    free(yaml);
    cJSON_Delete(o);
}

static void add_table(struct text *t, const char *title, const char *left, const struct card_row *rows, size_t count) {
    if (count == 0) return;
    text_addf(t, "## %s\n\n| %s | value |\n|---|---|\n", title, left);
    for (size_t i = 0; i < count; i++) {
        text_add(t, "| ");
        add_plain(t, rows[i].name);
        text_add(t, " | ");
        add_plain(t, rows[i].value);
        text_add(t, " |\n");
    }
    text_add_char(t, '\n');
}

/* A JSON string is a Python string too. */
static void add_example(struct text *t, const struct model_card *c) {
    const char *class = c->auto_class ? c->auto_class : "AutoModelForCausalLM";
    char *base = json_quote(c->base_model), *name = json_quote(c->name);
    bool images = strstr(class, "Image") || strstr(class, "Vision");
    const char *reader = images ? "AutoProcessor" : "AutoTokenizer";
    text_add(t, "## How to load it\n\n```python\n");
    if (c->quant_type) text_add(t, "import torch\n");
    if (!c->whole) text_add(t, "from peft import PeftModel\n");
    text_addf(t, "from transformers import %s, %s%s\n\n", class, reader, c->quant_type ? ", BitsAndBytesConfig" : "");
    if (c->quant_type) {
        char *type = json_quote(c->quant_type);
        text_addf(t,
                  "four_bits = BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type=%s, "
                  "bnb_4bit_compute_dtype=torch.bfloat16\n)\n",
                  type);
        free(type);
    }
    if (c->whole) {
        text_addf(t, "model = %s.from_pretrained(%s)  # this folder, or its name on the Hub\n", class, name);
        text_addf(t, "%s = %s.from_pretrained(%s)\n```\n\n", images ? "processor" : "tokenizer", reader, name);
        goto done;
    }
    text_addf(t, "base = %s.from_pretrained(%s, device_map=\"auto\"%s)\n", class, base,
              c->quant_type ? ", quantization_config=four_bits" : "");
    text_addf(t, "model = PeftModel.from_pretrained(base, %s)  # this folder, or its name on the Hub\n", name);
    text_addf(t, "%s = %s.from_pretrained(%s)\n```\n\n", images ? "processor" : "tokenizer", reader, base);
done:
    free(base);
    free(name);
}

void model_card_text(const struct model_card *c, struct text *t) {
    add_front_matter(t, c);
    text_add(t, "# ");
    add_plain(t, c->name);
    text_add(t, c->whole ? "\n\nThis folder holds a fine-tuned model" : "\n\nThis folder holds a low-rank adapter");
    if (c->method) {
        text_add(t, " (");
        add_plain(t, c->method);
        text_add_char(t, ')');
    }
    text_add(t, c->whole ? " that began as " : " for ");
    add_plain(t, c->base_model);
    text_add(t, c->whole ? ".\n\n"
                         : ". It holds only the weights that training added; they are used together with the\nbase "
                           "model.\n\n");
    if (c->summary) {
        add_plain(t, c->summary);
        text_add(t, "\n\n");
    }
    if (c->dataset_count) text_add(t, "## Training data\n\n");
    for (size_t i = 0; i < c->dataset_count; i++) {
        text_add(t, "- ");
        add_plain(t, c->datasets[i]);
        text_add(t, i + 1 == c->dataset_count ? "\n\n" : "\n");
    }
    add_table(t, "Training settings", "setting", c->settings, c->setting_count);
    add_table(t, "Results", "measure", c->results, c->result_count);
    add_example(t, c);
    text_add(t, "## How it was made\n\n"
                "Trained with graft, a fine-tuning program in C and CUDA. The folder is in the layout of ");
    text_add(t, c->whole ? "transformers. Where the\n" : "PEFT. Where the\n");
    text_add(
        t, "run left `config.yaml`, `graft train config.yaml` repeats it, and `log.jsonl` and `report.html` hold its\n"
           "curves.\n");
}

enum status model_card_write(const struct model_card *c, const char *path, struct err *e) {
    struct text t = {0};
    model_card_text(c, &t);
    enum status st = file_write(path, t.data, t.len, e);
    text_free(&t);
    return st;
}
