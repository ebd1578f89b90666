#include "data/mini_tokenizer.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/family.h"

static const char lesson[] =
    "The sun rises in the east and sets in the west. In the morning the birds sing and the children walk to school. "
    "A farmer looks at the sky and thinks that it will rain before the evening. The river runs from the mountains to "
    "the sea, and along the river there are small towns with stone houses and narrow streets. Every town has a market "
    "where people buy bread, cheese, apples and fish. What would you like to eat today? I would like some soup and a "
    "piece of bread, please.\n"
    "A question can be short or long. Who wrote this book? When was the bridge built? How many people live in this "
    "city? Where is the nearest station? Why does ice float on water? Which of the two answers is right? The answer is "
    "often shorter than the question, but a good answer explains the reason as well.\n"
    "Numbers help us to count things: one, two, three, four, five, six, seven, eight, nine, ten. Ten and ten are "
    "twenty, and a hundred is ten times ten. If you have seven apples and give three of them to your sister, then four "
    "apples remain. The first day of the week is Monday, and the last one is Sunday. There are twelve months in a year "
    "and twenty-four hours in a day.\n"
    "In this picture there is a red house beside a green tree. A black cat sits on the roof, and a white dog sleeps in "
    "front of the door. On the left you can see a blue car; on the right there are two yellow bicycles. The image "
    "shows "
    "a man and a woman who are standing near the water. The second picture is darker than the first one, because it "
    "was taken at night. Both images show the same street.\n"
    "Please describe what you see. The video shows a boy who throws a ball, and the ball rolls down the hill. The "
    "quality of the picture is good, the motion is smooth, and the colours look natural. Compare the two pictures and "
    "say what is different between them.\n"
    "A computer follows instructions. It reads numbers from its memory, adds or multiplies them, and writes the result "
    "back. A program is a list of such instructions, and somebody has to write it. When a program does not work, the "
    "programmer looks for the mistake, corrects it and tries again. A language model reads a text and predicts the "
    "next "
    "word. It learns from many examples: with every step the model makes a small change, so that the right word "
    "becomes "
    "a little more likely than it was before.\n"
    "Yesterday we went to the mountains. The weather was fine, although the wind was cold. We started early, walked "
    "for "
    "several hours and reached the top before noon. From there we could see the whole valley, the lake, the forest and "
    "the roads between the villages. After that we came down on the other side and took the train back home.\n"
    "You are a helpful assistant. Thank you for your question. Here is a short summary: the work was finished on time, "
    "the costs were lower than expected, and everyone was happy with the result. However, there is something that "
    "should be improved. First, the text should be easier to understand. Second, the examples should be more "
    "interesting. Third, there should be more of them. I hope that this helps; let me know if you have other "
    "questions.\n"
    "Water boils at one hundred degrees and freezes at zero. Plants need light, water and air. The moon moves around "
    "the earth, and the earth moves around the sun. Gold is heavier than iron, and wood is lighter than stone. Sound "
    "travels through air, but not through empty space. Most animals sleep at night; some of them sleep during the "
    "day.\n"
    "My friend is reading a letter that her brother sent from another country. He works there as a teacher and writes "
    "about his students, the food, the music and the long winter. She will write him an answer tomorrow and tell him "
    "about the new garden, where flowers are growing under the old trees. Nothing is better than good news from a "
    "person you love.\n";

enum { MERGES = 239, BYTES = 256, LEARNED = BYTES + MERGES };

/* A word of the lesson as tokens; merging makes it shorter. */
struct word {
    int *token;
    int len, count;
};

struct lesson {
    struct word *words;
    int count;
    char *text[LEARNED];  // of each token, as tokenizer.json writes it
    int merge[MERGES][2]; // token BYTES + i is made of these two
};

/* ---------------------------------------------------------------- the alphabet of bytes */

/* Byte level: printable bytes stand for themselves, the others for the characters from U+0100 on. */
static bool is_printable(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

/* Tokens 0..255: first the bytes that stand for themselves, then the others, each in order. */
static void add_alphabet(struct lesson *l, int token_of[BYTES]) {
    int token = 0;
    for (int printable = 1; printable >= 0; printable--)
        for (int byte = 0, other = 0x100; byte < BYTES; byte++) {
            unsigned rune = is_printable(byte) ? (unsigned)byte : (unsigned)other++;
            if (is_printable(byte) != printable) continue;
            struct text t = {0};
            text_add_rune(&t, rune);
            l->text[token] = t.data;
            token_of[byte] = token++;
        }
}

/* ---------------------------------------------------------------- learning */

/* Length of the next word: letters with one blank before them, or a single other byte. */
static int word_length(const char *s) {
    int n = s[0] == ' ' && isalpha((unsigned char)s[1]) ? 1 : 0;
    if (!isalpha((unsigned char)s[n])) return 1;
    while (isalpha((unsigned char)s[n])) n++;
    return n;
}

static void add_word(struct lesson *l, const int token_of[BYTES], const char *s, int n) {
    int *token = mem_alloc((size_t)n * sizeof *token);
    for (int i = 0; i < n; i++) token[i] = token_of[(unsigned char)s[i]];
    for (int i = 0; i < l->count; i++)
        if (l->words[i].len == n && memcmp(l->words[i].token, token, (size_t)n * sizeof *token) == 0) {
            l->words[i].count++;
            free(token);
            return;
        }
    l->words[l->count++] = (struct word){token, n, 1};
}

/* The pair of neighbours that is most frequent; of equal ones that of the lowest tokens. */
static void best_pair(const struct lesson *l, int *seen, int best[2]) {
    memset(seen, 0, (size_t)LEARNED * LEARNED * sizeof *seen);
    for (int i = 0; i < l->count; i++)
        for (int k = 0; k + 1 < l->words[i].len; k++)
            seen[l->words[i].token[k] * LEARNED + l->words[i].token[k + 1]] += l->words[i].count;
    int at = 0;
    for (int i = 1; i < LEARNED * LEARNED; i++)
        if (seen[i] > seen[at]) at = i;
    best[0] = at / LEARNED, best[1] = at % LEARNED;
}

static void merge_pair(struct word *w, const int pair[2], int token) {
    int n = 0;
    for (int i = 0; i < w->len; i++) {
        bool both = i + 1 < w->len && w->token[i] == pair[0] && w->token[i + 1] == pair[1];
        w->token[n++] = both ? token : w->token[i];
        i += both;
    }
    w->len = n;
}

static void learn(struct lesson *l) {
    int token_of[BYTES], *seen = mem_alloc((size_t)LEARNED * LEARNED * sizeof *seen);
    add_alphabet(l, token_of);
    l->words = mem_alloc(sizeof lesson * sizeof *l->words);
    for (const char *s = lesson; *s;) {
        int n = word_length(s);
        add_word(l, token_of, s, n);
        s += n;
    }
    for (int i = 0; i < MERGES; i++) {
        best_pair(l, seen, l->merge[i]);
        l->text[BYTES + i] = mem_format("%s%s", l->text[l->merge[i][0]], l->text[l->merge[i][1]]);
        for (int k = 0; k < l->count; k++) merge_pair(&l->words[k], l->merge[i], BYTES + i);
    }
    free(seen);
}

static void lesson_free(struct lesson *l) {
    for (int i = 0; i < l->count; i++) free(l->words[i].token);
    for (int i = 0; i < LEARNED; i++) free(l->text[i]);
    free(l->words);
}

/* ---------------------------------------------------------------- tokenizer.json */

static const char *const specials[] = {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                       "<|end_header_id|>", "<|eot_id|>",      NULL};
static const char *const mllava_specials[] = {"<image>", "<|pad|>", NULL};
static const char *const idefics2_specials[] = {"<fake_token_around_image>", "<image>", "<end_of_utterance>", "<|pad|>",
                                                NULL};
static const char *const mfuyu_specials[] = {
    TEXT_TOKEN, "<0x04>", "|ENDOFTEXT|", PATCH_TOKEN, ROW_END_TOKEN, PICTURE_TOKEN, PICTURE_END_TOKEN, "<|pad|>", NULL};
static const char *const no_specials[] = {NULL};
enum { MOST_SPECIALS = 16 };

/* Those of all models, then those of the family; returns how many. */
static int list_specials(const char *out[MOST_SPECIALS], enum family family) {
    const char *const *lists[] = {specials, family == FAMILY_MLLAVA     ? mllava_specials
                                            : family == FAMILY_IDEFICS2 ? idefics2_specials
                                            : family == FAMILY_MFUYU    ? mfuyu_specials
                                                                        : no_specials};
    int n = 0;
    for (int k = 0; k < 2; k++)
        for (const char *const *s = lists[k]; *s; s++) out[n++] = *s;
    return n;
}

static const char pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                              " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static const char frame[] =
    "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [], \"normalizer\": null,"
    " \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": ["
    "{\"type\": \"Split\", \"pattern\": {}, \"behavior\": \"Isolated\", \"invert\": false},"
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]},"
    " \"post_processor\": {\"type\": \"TemplateProcessing\","
    " \"single\": [{\"SpecialToken\": {\"id\": \"<|begin_of_text|>\", \"type_id\": 0}},"
    " {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}],"
    " \"pair\": [{\"SpecialToken\": {\"id\": \"<|begin_of_text|>\", \"type_id\": 0}},"
    " {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}},"
    " {\"SpecialToken\": {\"id\": \"<|begin_of_text|>\", \"type_id\": 1}},"
    " {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], \"special_tokens\": {}},"
    " \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},"
    " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null,"
    " \"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": true}}";

static cJSON *special_entry(const char *content, int id) {
    static const char *const no[] = {"single_word", "lstrip", "rstrip", "normalized"};
    cJSON *o = cJSON_CreateObject();
    if (id >= 0) cJSON_AddNumberToObject(o, "id", id);
    cJSON_AddStringToObject(o, "content", content);
    for (int i = 0; i < 4; i++) cJSON_AddFalseToObject(o, no[i]);
    cJSON_AddTrueToObject(o, "special");
    return o;
}

/* The post-processor names its BOS with id and text. */
static void add_bos(cJSON *post) {
    cJSON *o = cJSON_AddObjectToObject(cJSON_GetObjectItemCaseSensitive(post, "special_tokens"), specials[0]);
    int id = LEARNED;
    cJSON_AddStringToObject(o, "id", specials[0]);
    cJSON_AddItemToObject(o, "ids", cJSON_CreateIntArray(&id, 1));
    cJSON_AddItemToObject(o, "tokens", cJSON_CreateStringArray(specials, 1));
}

static cJSON *tokenizer_tree(const struct lesson *l, const char *const *special, int special_count) {
    cJSON *tree = cJSON_Parse(frame), *model = cJSON_GetObjectItemCaseSensitive(tree, "model");
    cJSON *added = cJSON_GetObjectItemCaseSensitive(tree, "added_tokens");
    cJSON *split =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(tree, "pre_tokenizer"), "pretokenizers")
            ->child;
    cJSON_AddStringToObject(cJSON_GetObjectItemCaseSensitive(split, "pattern"), "Regex", pattern);
    for (int i = 0; i < special_count; i++) cJSON_AddItemToArray(added, special_entry(special[i], LEARNED + i));
    add_bos(cJSON_GetObjectItemCaseSensitive(tree, "post_processor"));
    cJSON *vocab = cJSON_AddObjectToObject(model, "vocab"), *merges = cJSON_AddArrayToObject(model, "merges");
    for (int i = 0; i < LEARNED; i++) cJSON_AddNumberToObject(vocab, l->text[i], i);
    for (int i = 0; i < MERGES; i++) {
        char *pair = mem_format("%s %s", l->text[l->merge[i][0]], l->text[l->merge[i][1]]);
        cJSON_AddItemToArray(merges, cJSON_CreateString(pair));
        free(pair);
    }
    return tree;
}

static const char chat_template[] = "{{ bos_token }}{% for message in messages %}"
                                    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
                                    "message['content'] | trim + '<|eot_id|>' }}"
                                    "{% endfor %}{% if add_generation_prompt %}"
                                    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

static cJSON *config_tree(const char *const *special, int special_count, enum family family) {
    cJSON *tree = cJSON_CreateObject(), *added = cJSON_AddObjectToObject(tree, "added_tokens_decoder");
    for (int i = 0; i < special_count; i++) {
        char *id = mem_format("%d", LEARNED + i);
        cJSON_AddItemToObject(added, id, special_entry(special[i], -1));
        free(id);
    }
    cJSON_AddStringToObject(tree, "bos_token", "<|begin_of_text|>");
    cJSON_AddStringToObject(tree, "eos_token", family == FAMILY_MFUYU ? "|ENDOFTEXT|" : "<|eot_id|>");
    if (family != FAMILY_TEXT) cJSON_AddStringToObject(tree, "pad_token", "<|pad|>");
    cJSON_AddFalseToObject(tree, "clean_up_tokenization_spaces");
    cJSON_AddNumberToObject(tree, "model_max_length", 1 << 20);
    cJSON_AddStringToObject(tree, "tokenizer_class", "PreTrainedTokenizerFast");
    cJSON_AddStringToObject(tree, "chat_template", chat_template);
    return tree;
}

static enum status write_tree(const char *dir, const char *name, cJSON *tree, struct err *e) {
    json_write_in(dir, name, tree, e);
    cJSON_Delete(tree);
    return e->code;
}

enum status mini_tokenizer_write(const char *dir, enum family family, struct err *e) {
    const char *special[MOST_SPECIALS];
    int count = list_specials(special, family);
    struct lesson l = {0};
    learn(&l);
    if (write_tree(dir, "tokenizer.json", tokenizer_tree(&l, special, count), e) == ST_OK)
        write_tree(dir, "tokenizer_config.json", config_tree(special, count, family), e);
    lesson_free(&l);
    return e->code;
}
