bench/gpu: bench/gpu.c base/arena.h base/tensor.h base/half.h \
 base/memory.h bench/clock.h kernels/cuda/cuda.h kernels/backend.h \
 base/status.h base/threads.h kernels/ops.h quant/block.h quant/q4.h
base/arena.h:
base/tensor.h:
base/half.h:
base/memory.h:
bench/clock.h:
kernels/cuda/cuda.h:
kernels/backend.h:
base/status.h:
base/threads.h:
kernels/ops.h:
quant/block.h:
quant/q4.h:
