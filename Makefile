# graft: one object tree per flavour under build/, so no `clean` is needed between them.
#   make            build/release/graft          make asan     the tests under AddressSanitizer and UBSan
#   make help       every target

FLAVOUR ?= release
CC      ?= cc
BUILD   := build/$(FLAVOUR)
LIBS    := libcjson yaml-0.1 libpcre2-8 libutf8proc libjpeg libpng libwebp libwebpdemux lapack
FFMPEG  := libavformat libavcodec libswscale libavutil # opened at run time; what writes clips is linked with it
DEBIAN  := gcc g++ make pkg-config binutils libc6-dev libcjson-dev libyaml-dev libpcre2-dev libutf8proc-dev \
           libjpeg62-turbo-dev libpng-dev libwebp-dev libavformat-dev libavcodec-dev libswscale-dev libavutil-dev \
           liblapack-dev libcmocka-dev

WARN     := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wvla \
            -Werror=incompatible-pointer-types -Werror=implicit-function-declaration
CPPFLAGS += -I. -D_GNU_SOURCE -MMD -MP $(shell pkg-config --cflags $(LIBS) $(FFMPEG) 2>/dev/null)
CFLAGS   += -std=c11 -g $(WARN)
LDLIBS   += $(shell pkg-config --libs $(LIBS) 2>/dev/null) -lpthread -lm -ldl
FFMPEG_LIBS := $(shell pkg-config --libs $(FFMPEG) 2>/dev/null)

ifeq ($(FLAVOUR),release)
CFLAGS  += -O3
else ifeq ($(FLAVOUR),asan)
CFLAGS  += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=address,undefined
else ifeq ($(FLAVOUR),tsan)
CFLAGS  += -O1 -fsanitize=thread
LDFLAGS += -fsanitize=thread
else ifeq ($(FLAVOUR),sim)
SIM     := -fsanitize=address
CFLAGS  += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=address,undefined
else ifeq ($(FLAVOUR),race)
SIM     := -DSIM_RACE=1
CFLAGS  += -O1
else ifeq ($(FLAVOUR),fuzz)
CC      := clang
CFLAGS  += -O1 -Wno-pass-failed -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=address,undefined
else
$(error FLAVOUR is $(FLAVOUR), wanted release, asan, tsan, sim, race or fuzz)
endif

# The CUDA backend: CUDA=1 demands it, CUDA=0 leaves it out, auto takes it where nvcc is found. The device code holds
# machine code for each of CUDA_ARCHS, and PTX of the first from 80 on, which every later device that has none of these
# compiles for itself. What is compiled for 75 makes do without what came later: it is for that alone.
CUDA ?= auto
NVCC := $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
ifdef SIM
override CUDA := 1
CUDA_WHY := the simulator of tests/cudasim
else ifneq ($(FLAVOUR),release)
override CUDA := 0
CUDA_WHY := the $(FLAVOUR) flavour is built without it
else ifeq ($(CUDA),0)
CUDA_WHY := CUDA=0
else ifneq ($(NVCC),)
override CUDA := 1
ifndef CUDA_ARCHS
CUDA_ARCHS := $(filter $(subst sm_,,$(shell $(NVCC) --list-gpu-code)),75 80 89 90 100 120)
endif
CUDA_TOP := $(shell $(NVCC) --dryrun x.cu 2>&1 | sed -n 's/^.. TOP=//p')
CUDA_WHY := $(NVCC), compute capabilities $(CUDA_ARCHS)
else ifeq ($(CUDA),1)
$(error CUDA=1 is asked for and there is no nvcc, neither in PATH nor in /usr/local/cuda/bin)
else
override CUDA := 0
CUDA_WHY := there is no nvcc
endif

ifeq ($(CUDA),1)
CUDA_SRC := $(wildcard kernels/cuda/*.cu)
ifdef SIM
# Kernels compiled by the host's compiler, with checks of memory (sim) or of races (race), which the runtime answers.
CXX      := g++
CXXFLAGS := -std=c++17 -g -I. -Itests/cudasim -D_GNU_SOURCE -MMD -MP -Wall -Wextra -Wno-unknown-pragmas \
            -fno-exceptions -fno-rtti -fno-strict-aliasing -ffp-contract=fast $(SIM)
KERNEL_CHECKS := $(if $(filter race,$(FLAVOUR)),-fsanitize=thread) -fsanitize=alignment \
                 -fno-sanitize-recover=alignment $(if $(shell grep -m 1 -o ' fma ' /proc/cpuinfo),-mfma)
CUDA_SRC := $(filter-out kernels/cuda/cublaslt_load.cu,$(CUDA_SRC)) tests/cudasim/cublaslt.cu
SIM_SRC  := $(wildcard tests/cudasim/*.cpp)
SIM_TESTS := $(patsubst tests/%.cu,$(BUILD)/tests/%,$(wildcard tests/test_*.cu))
LDLIBS   += -lstdc++
else
CUDA_PTX := $(firstword $(filter-out 75,$(CUDA_ARCHS)))
NVCCFLAGS := -std=c++17 -O3 -g -I. -Ikernels/cuda/device -D_GNU_SOURCE -ccbin $(CC) -MMD -MP \
             -Xcompiler -Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics \
             $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
             $(foreach a,$(CUDA_PTX),-gencode arch=compute_$(a),code=compute_$(a))
LDLIBS    += $(addprefix -L,$(wildcard $(CUDA_TOP:%=%/lib64) $(CUDA_TOP:%=%/lib))) -lcudart_static -lrt
endif
endif

# The CPU kernels are compiled once per instruction set; each set becomes one object that shows only its op table.
ifeq ($(shell uname -m),x86_64)
ISAS := x86-64 x86-64-v3 x86-64-v4
else
ISAS := native
endif
ISA_SRC     := $(filter-out kernels/cpu/backend.c,$(wildcard kernels/cpu/*.c))
ISA_FLAGS_x86-64    := -march=x86-64
ISA_FLAGS_x86-64-v3 := -march=x86-64-v3
ISA_FLAGS_x86-64-v4 := -march=x86-64-v4 -mprefer-vector-width=512
ISA_FLAGS_native    :=
ISA_COMMON          := -ffp-contract=fast -fno-math-errno -fopenmp-simd
isa_table    = cpu_ops_$(subst -,_,$(1))
isa_objects  = $(patsubst %.c,$(BUILD)/isa-$(1)/%.o,$(ISA_SRC))

LIB_SRC  := $(wildcard base/*.c quant/*.c kernels/*.c model/*.c data/*.c lora/*.c) kernels/cpu/backend.c
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o) $(ISAS:%=$(BUILD)/cpu-%.o) $(CUDA_SRC:%.cu=$(BUILD)/%.o) \
            $(SIM_SRC:%.cpp=$(BUILD)/%.o)
CLI_OBJ  := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cli/*.c))
TESTS    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
TEST_LIB := $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard tests/test_*.c tests/fuzz_*.c),$(wildcard tests/*.c)))
FUZZERS  := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz_*.c))
BENCHES  := $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))
EXAMPLES := $(patsubst examples/%/make_data.c,$(BUILD)/examples/make_%_data,$(wildcard examples/*/make_data.c))
CLIP_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard examples/clips/*.c))

.DEFAULT_GOAL := all
.PHONY: all deps demo base test sim gpu-check asan tsan fuzz bench golden interop install clean help tests sim-builds \
        sim-tests fuzzers
.SECONDARY:

all: $(BUILD)/graft ## builds build/release/graft

$(BUILD)/graft: $(CLI_OBJ) $(BUILD)/libgraft.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# A file in the tree says how it was built, so that another CUDA= makes again what depends on it.
CUDA_MARK := $(BUILD)/cuda-$(CUDA)
ifneq ($(filter-out help clean deps,$(or $(MAKECMDGOALS),all)),)
ifeq ($(MAKELEVEL),0)
$(info CUDA backend: $(if $(filter 1,$(CUDA)),on,off) ($(CUDA_WHY)))
endif
ifeq ($(wildcard $(CUDA_MARK)),)
$(shell mkdir -p $(BUILD) && rm -f $(BUILD)/cuda-[01] && touch $(CUDA_MARK))
endif
endif

ifeq ($(CUDA),1)
$(BUILD)/kernels/backend.o: CPPFLAGS += -DCUDA
endif
$(BUILD)/kernels/backend.o: $(CUDA_MARK)

$(BUILD)/libgraft.a: $(LIB_OBJ) $(CUDA_MARK)
	@rm -f $@
	$(AR) rcs $@ $(LIB_OBJ)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC $<"
	@$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

ifdef SIM
$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  CXX $<"
	@$(CXX) $(CXXFLAGS) -O1 $(KERNEL_CHECKS) -x c++ -c $< -o $@
	@$(if $(filter race,$(FLAVOUR)),objcopy $(foreach f,memcpy memmove memset,--redefine-sym $f=sim_$f) $@)

$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	@echo "  CXX $<"
	@$(CXX) $(CXXFLAGS) -O2 -c $< -o $@
else
# What ptxas says of registers and spills lies beside the object, for tests/ptxas.sh; the rest is for the reader.
PTXAS_INFO := ^ptxas info|^ +[0-9]+ bytes stack frame

$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  NVCC $<"
	@$(NVCC) $(NVCCFLAGS) -Xptxas -v -c $< -o $@ 2>$(@:.o=.said); status=$$?; \
	 grep -E '$(PTXAS_INFO)' $(@:.o=.said) >$(@:.o=.ptxas); grep -vE '$(PTXAS_INFO)' $(@:.o=.said) >&2; \
	 rm -f $(@:.o=.said); [ $$status -eq 0 ] || rm -f $@ $(@:.o=.ptxas); exit $$status
endif

define ISA_RULES
$$(BUILD)/isa-$(1)/%.o: %.c
	@mkdir -p $$(@D)
	@echo "  CC $$< ($(1))"
	@$$(CC) $$(CPPFLAGS) -DCPU_OPS=$$(call isa_table,$(1)) $$(CFLAGS) $$(ISA_FLAGS_$(1)) $$(ISA_COMMON) -c $$< -o $$@

$$(BUILD)/cpu-$(1).o: $$(call isa_objects,$(1))
	@$$(LD) -r -o $$@.all $$^
	@objcopy --keep-global-symbol=$$(call isa_table,$(1)) $$@.all $$@
	@rm -f $$@.all
endef
$(foreach isa,$(ISAS),$(eval $(call ISA_RULES,$(isa))))

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(TEST_LIB) $(BUILD)/libgraft.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(FFMPEG_LIBS) -lcmocka

ifdef SIM
$(SIM_TESTS): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libgraft.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
endif

# bench/gemm stands beside oneDNN where that is installed.
ifneq ($(wildcard /usr/include/dnnl.h),)
$(BUILD)/bench/gemm.o: CPPFLAGS += -DHAVE_DNNL
$(BUILD)/bench/gemm: LDLIBS += -ldnnl
endif

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libgraft.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/examples/make_%_data: $(BUILD)/examples/%/make_data.o $(CLIP_OBJ) $(BUILD)/libgraft.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(FFMPEG_LIBS)

deps: ## checks every dependency; names and installs the missing Debian packages
	@sh tests/deps.sh "$(DEBIAN)"

tests: $(BUILD)/graft $(EXAMPLES) $(TESTS)

demo: deps ## makes clips with scores, trains a scorer of video quality by QLoRA, shows what it learned; in build/demo
	@$(MAKE) -s FLAVOUR=$(FLAVOUR) $(BUILD)/graft $(EXAMPLES)
	@sh examples/video/run.sh $(BUILD)

base: deps ## makes the base model of the examples from nothing, in build/base; most of an hour
	@$(MAKE) -s FLAVOUR=$(FLAVOUR) $(BUILD)/graft $(EXAMPLES)
	@sh examples/base/run.sh $(BUILD)

test: deps ## every test that this machine can run
	@$(MAKE) --no-print-directory -j$(shell nproc) FLAVOUR=$(FLAVOUR) tests
ifeq ($(FLAVOUR),release)
	@$(MAKE) --no-print-directory sim-builds
	@sh tests/run.sh $(BUILD) build/sim build/race
else
	@sh tests/run.sh $(BUILD)
endif

gpu-check: ## on a machine with a GPU: ops, trainings, memory checks and figures there; no device is a failure
	@$(MAKE) --no-print-directory -j$(shell nproc) CUDA=1 $(BUILD)/graft $(BUILD)/bench/gpu
	@if [ -f /usr/include/cmocka.h ]; then $(MAKE) --no-print-directory -j$(shell nproc) CUDA=1 tests; fi
	@sh tests/gpu-check.sh $(BUILD)

sim: deps ## the CUDA kernels and their tests on a machine without a GPU, in the simulator of tests/cudasim
	@$(MAKE) --no-print-directory sim-builds
	@sh tests/sim.sh build/sim build/race

sim-builds:
	@$(MAKE) --no-print-directory -j$(shell nproc) FLAVOUR=sim sim-tests
	@$(MAKE) --no-print-directory -j$(shell nproc) FLAVOUR=race sim-tests

sim-tests: $(BUILD)/graft $(SIM_TESTS) \
           $(addprefix $(BUILD)/tests/test_,backend ops gemm attention linear weights device)

asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory FLAVOUR=asan test

tsan: ## the tests under ThreadSanitizer
	@$(MAKE) --no-print-directory FLAVOUR=tsan test

$(BUILD)/tests/fuzz_%: $(BUILD)/tests/fuzz_%.o $(BUILD)/libgraft.a
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

FUZZ_SECONDS ?= 60
fuzz: ## every parser on mutated files, FUZZ_SECONDS each; needs clang and libclang-rt
	@$(MAKE) --no-print-directory -j$(shell nproc) FLAVOUR=fuzz fuzzers
	@sh tests/fuzz.sh build/fuzz $(FUZZ_SECONDS)

fuzzers: $(FUZZERS)

bench: $(BUILD)/graft $(BENCHES) ## times what matters
	@sh bench/run.sh $(BUILD)

golden: ## makes the fixtures again; needs Python with tests/golden/requirements.txt
	for script in tests/golden/reference.py tests/golden/make_*.py; do python3 $$script || exit 1; done

INTEROP_PYTHON ?= python3
interop: $(BUILD)/graft ## what graft writes, in PEFT, transformers and llama.cpp; needs tests/interop/requirements.txt
	GRAFT=$(abspath $(BUILD)/graft) $(INTEROP_PYTHON) tests/interop/interop.py
	GRAFT=$(abspath $(BUILD)/graft) $(INTEROP_PYTHON) tests/interop/adapters.py
ifdef OLD_PEFT_PYTHON
	GRAFT=$(abspath $(BUILD)/graft) $(OLD_PEFT_PYTHON) tests/interop/adapters.py
endif

PREFIX ?= /usr/local
install: $(BUILD)/graft ## copies graft to PREFIX/bin
	install -D -m 755 $(BUILD)/graft $(DESTDIR)$(PREFIX)/bin/graft

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

clean: ## removes build/
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
