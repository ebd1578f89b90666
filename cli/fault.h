/* What the system says by a signal and other programs die of: a sentence and exit status 1 instead. */
#ifndef CLI_FAULT_H
#define CLI_FAULT_H

/* From now on: a file that becomes shorter while it is mapped (SIGBUS) is named and ends the program; a file that would
 * grow beyond what is allowed (SIGXFSZ) is a failed write. */
void fault_watch(void);

#endif
