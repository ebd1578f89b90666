/* What goes wrong in a clip. strength runs from 0 (nothing) to 1 (much). */
#ifndef EXAMPLES_CLIPS_FAULTS_H
#define EXAMPLES_CLIPS_FAULTS_H

#include "examples/clips/scene.h"

void fault_blur(struct clip *c, double strength);
void fault_noise(struct clip *c, double strength, struct dice *d);
void fault_blocks(struct clip *c, double strength); // what a codec leaves of a picture: squares of one colour
void fault_flicker(struct clip *c, double strength, struct dice *d);

/* `count` frames, not the first, are lost: the one before is shown once more. */
void fault_drop(struct clip *c, int count, struct dice *d);

/* Some frames take the places of others: `swaps` times two of them. Fills order with the frame that is now at each
 * place. */
void fault_shuffle(struct clip *c, int swaps, int order[FRAMES], struct dice *d);

#endif
