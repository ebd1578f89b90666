#include "lora/output.h"

#include "lora/full.h"

enum status trained_write(const struct adapter *a, const char *dir, enum precision p, struct err *e) {
    return a->finetuning == FINETUNE_LORA ? adapter_write(a, dir, e) : full_write(a, dir, p, e);
}

enum status trained_read(struct adapter *a, const char *dir, struct err *e) {
    return a->finetuning == FINETUNE_LORA ? adapter_read(a, dir, e) : full_read(a, dir, e);
}
