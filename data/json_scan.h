/* Reading JSON from front to back without building a tree, for the large parts of tokenizer.json. The text must be
 * valid UTF-8. Every function returns false at the first mistake and leaves the reason in the scan's err. */
#ifndef DATA_JSON_SCAN_H
#define DATA_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"

struct json_scan {
    const char *text;
    size_t n, at;
    const char *where; // names the text in an error
    struct err *e;
};

bool json_scan_wrong(struct json_scan *c, const char *wanted); // leaves "line L: wanted ..."; always false

bool json_scan_take(struct json_scan *c, char mark); // skips white space; true, and past it, when mark comes next
bool json_scan_need(struct json_scan *c, char mark); // the same, but its absence is a mistake
bool json_scan_string(struct json_scan *c, struct text *out);
bool json_scan_id(struct json_scan *c, int64_t *out);    // a whole number of 0 or more, below 2^32
bool json_scan_number(struct json_scan *c, double *out); // finite
bool json_scan_skip(struct json_scan *c);                // any value; nested at most 64 deep
bool json_scan_end(struct json_scan *c);                 // nothing but white space is left

/* The members of an object (items of a list), one by one: true while there is another; then read its value. Start with
 * *first = true after the opening mark. The end, and a mistake (*failed), both return false. */
bool json_scan_member(struct json_scan *c, bool *first, struct text *key, bool *failed);
bool json_scan_item(struct json_scan *c, bool *first, bool *failed);

#endif
