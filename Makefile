# shardlab: one Makefile. `make help` lists the targets; `make config` shows what was found.

# ---- choices -----------------------------------------------------------------------------------
PROFILE ?= release
BUILD   ?= build
PREFIX  ?= /usr/local
TEST    ?=
SKIP    ?=
V       ?= 0
# The half that needs CUDA: auto builds it where its parts are found, 1 insists, 0 does without.
CUDA    ?= auto

PROFILES := release debug asan tsan cov
ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error unknown PROFILE "$(PROFILE)"; choose one of: $(PROFILES))
endif

ifeq ($(filter $(CUDA),auto 0 1),)
$(error unknown CUDA "$(CUDA)"; choose one of: auto 0 1)
endif

ifeq ($(origin CC),default)
CC := gcc
endif
# The sanitizers' extra code makes the compiler warn about what the program does not do; release and
# debug have warned already.
WERROR ?= $(if $(filter release debug,$(PROFILE)),1,0)
ifeq ($(CI),1)
WERROR := $(if $(filter release debug,$(PROFILE)),1,0)
endif
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif
Q := $(if $(filter 1,$(V)),,@)
SAY = $(if $(filter 1,$(V)),@:,@printf '  %-7s %s\n')

# ---- flags -------------------------------------------------------------------------------------
ARCH   := $(shell uname -m)
IS_X86 := $(filter x86_64 amd64,$(ARCH))
IS_GCC := $(shell $(CC) --version 2>/dev/null | head -n 1 | grep -qi clang || echo 1)

WARN_COMMON := -Wall -Wextra -Wpedantic -Wshadow -Wundef -Wconversion -Wsign-conversion \
  -Wdouble-promotion -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition \
  -Wredundant-decls -Wcast-qual -Wpointer-arith -Wwrite-strings -Wswitch-enum \
  -Wimplicit-fallthrough -Wvla -Wnull-dereference -fno-common
# SHL_ASSERT(!"why") is an idiom.
WARN_CLANG := -Wno-string-conversion
WARN_GCC := -Wlogical-op -Wduplicated-cond -Wduplicated-branches -Wjump-misses-init
WARN := $(WARN_COMMON) $(if $(IS_GCC),$(WARN_GCC),$(WARN_CLANG)) $(if $(filter 1,$(WERROR)),-Werror)

# Debian keeps the serial HDF5 apart from the MPI one; elsewhere name both by hand.
HDF5_CFLAGS ?= -isystem /usr/include/hdf5/serial
HDF5_LIBS   ?= $(if $(wildcard /etc/debian_version),-lhdf5_serial,-lhdf5)

CPPFLAGS_ALL := -I. -D_GNU_SOURCE -DXXH_INLINE_ALL $(if $(IS_X86),-DSHL_HAVE_X86_ISA=1) \
  $(HDF5_CFLAGS) $(CPPFLAGS)
LIBS := -Wl,--as-needed -ldnnl $(HDF5_LIBS) -ljansson -lm -lpthread -lrt

SANITIZE_asan := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SANITIZE_tsan := -fsanitize=thread -fno-omit-frame-pointer
QUIET_NULL    := -Wno-null-dereference -Wno-maybe-uninitialized
OPT_release := -O2 $(if $(filter 1,$(CI)),-g1,-g)
OPT_debug   := -Og -g3
OPT_asan    := -O1 -g1 $(SANITIZE_asan)
OPT_tsan    := -O1 -g1 $(SANITIZE_tsan)
OPT_cov     := -O0 -g --coverage $(QUIET_NULL)
LINK_asan   := $(SANITIZE_asan)
LINK_tsan   := $(SANITIZE_tsan)
LINK_cov    := --coverage

# No contraction anywhere: a*b + c must give the same bits in the vector body of a loop, in its
# scalar tail and in every partition of a tensor. A kernel that wants a fused multiply-add writes
# one, and then has it in body and tail alike.
FP := -ffp-contract=off
# The same objects make the archive and the shared library; only shardlab.h is seen from outside.
PIC := -fPIC -fvisibility=hidden
CFLAGS_ALL := -std=c11 $(OPT_$(PROFILE)) $(FP) $(PIC) -fopenmp $(if $(SANITIZE_$(PROFILE)),,$(WARN)) $(CFLAGS)
LDFLAGS_ALL := -fopenmp $(LINK_$(PROFILE)) $(LDFLAGS)

# kernels/cpu/*_k.c are compiled once for each instruction set; SHL_ISA suffixes their symbols.
# A sanitizer sees the same text in any of them.
ISAS := base $(if $(IS_X86),avx2 $(if $(SANITIZE_$(PROFILE)),,avx512))
KERNEL_FLAGS := $(if $(filter debug cov,$(PROFILE)),,-O3) -fno-math-errno -fno-trapping-math
ISA_base   := -DSHL_ISA=base
ISA_avx2   := -DSHL_ISA=avx2 -mavx2 -mfma -mf16c
ISA_avx512 := -DSHL_ISA=avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c \
  -mprefer-vector-width=512

# ---- sources -----------------------------------------------------------------------------------
ROOMS := $(addprefix kernels/,base device ops cpu cuda virtual) models engines \
  $(addprefix engines/,comm config shared zero fsdp api) checkpoints bench
EXAMPLES    := $(sort $(wildcard engines/api/example_*.c))
SRC         := $(filter-out $(EXAMPLES),$(foreach room,$(ROOMS),$(sort $(wildcard $(room)/*.c))))
HEADERS     := $(foreach room,$(ROOMS),$(sort $(wildcard $(room)/*.h)))
KERNEL_SRC  := $(filter kernels/cpu/%_k.c,$(SRC))
MAIN_SRC    := $(filter bench/main.c,$(SRC))
LIB_SRC     := $(filter-out $(KERNEL_SRC) $(MAIN_SRC),$(SRC))
# What runs on the emulated object (below) has no other profile.
TEST_SRC    := $(sort $(shell find tests -name 'test_*.c' $(if \
  $(filter release,$(PROFILE)),,! -name 'test_*cuda*.c') 2>/dev/null))
SUPPORT_SRC := $(sort $(wildcard tests/support/*.c))
ALL_C       := $(SRC) $(TEST_SRC) $(SUPPORT_SRC)
ALL_H       := $(HEADERS) $(sort $(shell find tests -name '*.h' ! -path '*/emulate/*' 2>/dev/null))

OUT      := $(BUILD)/$(PROFILE)
LIB_OBJ  := $(LIB_SRC:%.c=$(OUT)/%.o) $(foreach isa,$(ISAS),$(KERNEL_SRC:%.c=$(OUT)/%.$(isa).o))
MAIN_OBJ := $(MAIN_SRC:%.c=$(OUT)/%.o)
SUPPORT_OBJ := $(SUPPORT_SRC:%.c=$(OUT)/%.o)
TEST_OBJ := $(TEST_SRC:%.c=$(OUT)/%.o)
LIB      := $(OUT)/libshardlab.a
# What is installed: everything below the program.
VERSION  := $(shell sed -n 's/^\#define SHL_LAB_VERSION "\(.*\)"/\1/p' engines/api/shardlab.h)
SONAME   := libshardlab.so.$(firstword $(subst ., ,$(VERSION)))
API_OBJ  := $(filter-out $(OUT)/bench/%,$(LIB_OBJ))
API_LIB  := $(OUT)/lib/libshardlab.a
API_SO   := $(OUT)/lib/$(SONAME)
SUPPORT  := $(OUT)/libsupport.a
PROG     := $(if $(MAIN_SRC),$(OUT)/shardlab)
INSTALL_TEST := $(OUT)/tests/test_install
TESTS    := $(foreach t,$(TEST_SRC),$(OUT)/tests/$(notdir $(basename $t))) $(INSTALL_TEST)
DEPS     = $(CUDA_OBJ:.o=.d) $(EMULATED_OBJ:.o=.d) $(LIB_OBJ:.o=.d) $(MAIN_OBJ:.o=.d) $(SUPPORT_OBJ:.o=.d) $(TEST_OBJ:.o=.d)

# ---- CUDA --------------------------------------------------------------------------------------
# kernels/cuda/object becomes a shared object of its own, so that the program needs nothing of CUDA.
NVCC      := $(firstword $(wildcard $(addsuffix /bin/nvcc,$(CUDA_HOME) /usr/local/cuda)) \
  $(shell command -v nvcc 2>/dev/null))
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(NVCC))
CUDA_LIB  ?= $(firstword $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))
# Machine code for these, and PTX of the last for what comes after it.
CUDA_ARCHS ?= $(if $(filter 1,$(CI)),90,80 90)
CUDA_CODE := $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
  $(if $(filter 1,$(CI)),,-gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS)))
CUDA_INC  := $(addprefix -isystem ,$(wildcard $(CUDA_HOME)/include))
CUDA_HEADERS := cublasLt.h cudnn.h nccl.h
CUDA_FOUND := $(if $(NVCC),$(if $(filter-out 3,$(words $(foreach h,$(CUDA_HEADERS),$(firstword \
  $(wildcard $(addsuffix /$h,$(CUDA_HOME)/include /usr/local/include /usr/include)))))),,1))
BUILD_CUDA := $(if $(filter 1,$(CUDA)),1,$(if $(filter auto,$(CUDA)),$(if $(filter release,$(PROFILE)),$(CUDA_FOUND))))
CUDA_OBJECT := $(OUT)/lib/libshardlab-cuda.so
CUDA_SRC    := $(sort $(wildcard kernels/cuda/object/*.cu kernels/cuda/object/*.c)) \
  kernels/base/heap.c kernels/base/err.c
CUDA_OBJ    := $(CUDA_SRC:%=$(OUT)/cuda/%.o)

# ---- building ----------------------------------------------------------------------------------
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
.DEFAULT_GOAL := all

all: $(LIB) $(PROG) $(API_LIB) $(API_SO) $(if $(BUILD_CUDA),$(CUDA_OBJECT)) ## build the libraries and the program
tests: $(TESTS) ## build the test programs

# Rewritten only when its text changes, so that new flags rebuild and old ones do not.
FLAGS_TEXT = $(CC) | $(CPPFLAGS_ALL) | $(CFLAGS_ALL) | $(KERNEL_FLAGS) | $(LDFLAGS_ALL) | $(LIBS) \
  | $(foreach isa,$(ISAS),$(ISA_$(isa))) | $(CXX) | $(EMULATE_FLAGS)
$(OUT)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(FLAGS_TEXT)' | cmp -s - $@ || printf '%s\n' '$(FLAGS_TEXT)' > $@
FORCE:

$(OUT)/%.o: %.c $(OUT)/flags
	$(SAY) CC $<
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(EXTRA) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

# Records name the flags and the commit; only this object knows them and follows a new commit.
COMMIT := $(shell git describe --always --dirty --abbrev=12 2>/dev/null)
$(OUT)/commit: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(COMMIT)' | cmp -s - $@ || printf '%s\n' '$(COMMIT)' > $@
$(OUT)/bench/fingerprint.o: $(OUT)/commit
$(OUT)/bench/fingerprint.o: EXTRA = -DSHL_BUILD_COMMIT='"$(COMMIT)"' \
  -DSHL_BUILD_FLAGS='"$(OPT_$(PROFILE)) $(FP) $(subst ",,$(CFLAGS))"'

$(OUT)/kernels/cpu/cpu_table.o: EXTRA = $(if $(filter avx512,$(ISAS)),-DSHL_HAVE_AVX512=1)

define KERNEL_RULE
$$(OUT)/%.$1.o: %.c $$(OUT)/flags
	$$(SAY) CC '$$< ($1)'
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(CPPFLAGS_ALL) $$(CFLAGS_ALL) $$(KERNEL_FLAGS) $$(ISA_$1) -MMD -MP -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call KERNEL_RULE,$(isa))))

# The list of members is a prerequisite: a source that is taken away leaves the archive too.
$(OUT)/members: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(LIB_OBJ) $(SUPPORT_OBJ)' | cmp -s - $@ \
	  || printf '%s\n' '$(LIB_OBJ) $(SUPPORT_OBJ)' > $@

$(LIB): $(LIB_OBJ) $(OUT)/members
	$(SAY) AR $@
	$(Q)rm -f $@ && $(AR) rcs $@ $(LIB_OBJ)

$(API_LIB): $(API_OBJ) $(OUT)/members
	$(SAY) AR $@
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $(API_OBJ)

# A missing symbol is the linker's message here, not the loader's at a user's.
$(API_SO): $(API_OBJ) $(OUT)/members
	$(SAY) LINK $@
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -Wl,-soname,$(SONAME) $(if $(LINK_$(PROFILE)),,-Wl,-z,defs) $(LDFLAGS_ALL) \
	  $(API_OBJ) $(LIBS) -o $@

$(OUT)/shardlab: $(MAIN_OBJ) $(LIB)
	$(SAY) LINK $@
	$(Q)$(CC) $(LDFLAGS_ALL) $(MAIN_OBJ) $(LIB) $(LIBS) -o $@

# An archive, so that a test of the ground floor does not link the house.
$(SUPPORT): $(SUPPORT_OBJ) $(OUT)/members
	$(Q)rm -f $@ && $(AR) rcs $@ $(SUPPORT_OBJ)

# Only the tests of bench link it: a run of chosen tests of what lies below does not build it.
define TEST_RULE
$$(OUT)/tests/$$(notdir $$(basename $1)): $$(OUT)/$$(basename $1).o $$(SUPPORT) $(if $(filter tests/bench/%,$1),$(LIB),$(API_LIB))
	$$(SAY) LINK $$@
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(LDFLAGS_ALL) $$(filter %.o %.a,$$^) -lcmocka $$(LIBS) -o $$@
endef
$(foreach t,$(TEST_SRC),$(eval $(call TEST_RULE,$t)))

# kernels/cuda/object on the CPU: its kernels by g++ over the tests' emulation of CUDA's language, behind
# the table that the program loads. Fibers and sanitizers do not mix.
CUDA_OBJECT_CU := $(sort $(wildcard kernels/cuda/object/*.cu))
CUDA_OBJECT_C  := $(filter-out %/cuda_object.c %/cuda_object_memory.c,$(sort $(wildcard kernels/cuda/object/*.c)))
EMULATE_SRC    := $(sort $(wildcard tests/support/emulate/*.cpp))
EMULATED       := $(OUT)/tests/libcuda-emulated.so
EMULATED_OBJ   := $(patsubst %,$(OUT)/emulated/%.o,$(CUDA_OBJECT_CU) $(CUDA_OBJECT_C) $(EMULATE_SRC))
CXX            ?= g++
EMULATE_FLAGS  := -DSHL_EMULATED -Itests/support/emulate -I. -D_GNU_SOURCE -O1 $(if $(filter 1,$(CI)),,-g) $(FP) -fPIC \
  -fvisibility=hidden -Wall -Wextra -Wshadow $(if $(filter 1,$(WERROR)),-Werror)
$(OUT)/emulated/%.cu.o: %.cu $(OUT)/flags
	$(SAY) CXX '$< (emulated)'
	@mkdir -p $(@D)
	$(Q)$(CXX) -x c++ -std=c++17 $(EMULATE_FLAGS) -MMD -MP -c $< -o $@
$(OUT)/emulated/%.cpp.o: %.cpp $(OUT)/flags
	$(SAY) CXX $<
	@mkdir -p $(@D)
	$(Q)$(CXX) -std=c++17 $(EMULATE_FLAGS) -MMD -MP -c $< -o $@
$(OUT)/emulated/%.c.o: %.c $(OUT)/flags
	$(SAY) CC '$< (emulated)'
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 $(EMULATE_FLAGS) -MMD -MP -c $< -o $@
$(EMULATED): $(EMULATED_OBJ)
	$(SAY) LINK $@
	@mkdir -p $(@D)
	$(Q)$(CXX) -shared $(EMULATED_OBJ) -o $@ -lpthread
# NCCL's functions for processes on emulated cards.
MOCK_NCCL := $(OUT)/tests/libnccl-mock.so
$(MOCK_NCCL): $(wildcard tests/support/emulate/emulate_nccl*) $(OUT)/flags
	$(SAY) LINK $@
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 $(EMULATE_FLAGS) -shared $(filter %.c,$^) -o $@ -lpthread -lrt
$(EMULATED): | $(MOCK_NCCL)
$(foreach t,$(TESTS),$(if $(findstring cuda,$(notdir $t)),$(eval $t: | $(EMULATED))))

# The real one. Nothing is contracted: a kernel that wants a fused multiply-add writes one. CI only wants to
# see it compile, and takes the quickest way that this nvcc has.
CUDA_QUICK := $(if $(filter 1,$(CI)),$(if $(NVCC),$(findstring -Ofc,$(shell $(NVCC) --help))))
NVCC_FLAGS := -std=c++17 -O3 -lineinfo -fmad=false -I. -D_GNU_SOURCE $(CUDA_CODE) $(CUDA_QUICK:%=%=max) \
  -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra $(if $(filter 1,$(WERROR)),-Werror all-warnings)
CUDA_TEXT = $(NVCC) | $(NVCC_FLAGS) | $(CC) | $(CFLAGS_ALL) | $(CUDA_LIB)
$(OUT)/cuda/flags: FORCE
	@mkdir -p $(@D)
	@$(CUDA_PROBE); if [ -n "$$missing" ]; then \
	  echo 'error: the CUDA half cannot be built here' >&2; \
	  echo "because: these are missing:$$missing" >&2; \
	  echo 'try: CUDA_HOME=<folder of the CUDA toolkit> with cuDNN 9 and NCCL in it, or make CUDA=0' >&2; \
	  exit 1; fi
	@printf '%s\n' '$(CUDA_TEXT)' | cmp -s - $@ || printf '%s\n' '$(CUDA_TEXT)' > $@
$(OUT)/cuda/%.cu.o: %.cu $(OUT)/cuda/flags
	$(SAY) NVCC $<
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
$(OUT)/cuda/%.c.o: %.c $(OUT)/cuda/flags
	$(SAY) CC '$< (cuda)'
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CUDA_INC) -std=c11 -O2 -g $(FP) $(PIC) $(WARN) -MMD -MP -c $< -o $@
$(CUDA_OBJECT): $(CUDA_OBJ)
	$(SAY) LINK $@
	@mkdir -p $(@D)
	$(Q)$(CXX) -shared -Wl,-soname,$(@F) -Wl,-z,defs -Wl,--exclude-libs,ALL -Wl,-rpath,$(CUDA_LIB) \
	  $(CUDA_OBJ) -L$(CUDA_LIB) -lcublasLt -lcudart_static -ldl -lrt -lpthread -o $@
cuda: $(CUDA_OBJECT) ## build the half that needs CUDA

has-cuda:
	@echo '$(CUDA_FOUND)'

# Each probe compiles and links. $missing: what is not there; $found: versions of what is.
define CUDA_PROBE
missing=; found=; \
[ -n '$(NVCC)' ] && found="nvcc $$('$(NVCC)' --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')" \
  || missing=' nvcc'; \
probe() { version=$$(printf '#include <%s>\nversion %s.%s.%s\n' "$$2" "$$4" "$$5" "$$6" \
  | $(CC) $(CUDA_INC) -E -P -x c - 2>/dev/null | sed -n 's/^version //p' | tr -d ' '); \
printf '#include <stddef.h>\n#include <%s>\nint main(void) { return 0; }\n' "$$2" | $(CC) $(CUDA_INC) \
  -x c - -o /dev/null -Wl,--no-as-needed,--allow-shlib-undefined $(addprefix -L,$(CUDA_LIB)) $$3 2>/dev/null \
  && found="$$found, $$1 $$version" || missing="$$missing $$1"; }; \
probe cuBLASLt cublasLt.h -lcublasLt CUBLAS_VER_MAJOR CUBLAS_VER_MINOR CUBLAS_VER_PATCH; \
probe cuDNN cudnn.h -lcudnn CUDNN_MAJOR CUDNN_MINOR CUDNN_PATCHLEVEL; \
probe NCCL nccl.h -lnccl NCCL_MAJOR NCCL_MINOR NCCL_PATCH
endef

# Installs into a folder of its own and builds the example against that, as a user would.
$(INSTALL_TEST): tests/engines/api/install.sh $(LIB) $(PROG) $(API_LIB) $(API_SO) $(OUT)/flags
	@mkdir -p $(@D)
	@printf '#!/bin/sh\nexec env CC="%s" MAKE="%s" bash tests/engines/api/install.sh "%s" "%s" "%s"\n' \
	  '$(CC)' '$(MAKE)' '$(BUILD)' '$(PROFILE)' '$(SONAME)' > $@
	@chmod +x $@

-include $(DEPS)

# ---- packages ----------------------------------------------------------------------------------
# Each probe compiles and links, because a header without its library is of no use.
define PROBE
missing=; \
probe() { printf '#include <stdarg.h>\n#include <stddef.h>\n#include <stdint.h>\n\
#include <setjmp.h>\n#include <%s>\nint main(void) { return 0; }\n' "$$2" \
  | $(CC) $(HDF5_CFLAGS) -x c - -o /dev/null $$3 2>/dev/null || missing="$$missing $$1"; }; \
printf 'int main(void) { return 0; }\n' | $(CC) -x c - -o /dev/null 2>/dev/null \
  || missing="$$missing build-essential"; \
probe libhdf5-dev hdf5.h '-Wl,--no-as-needed $(HDF5_LIBS)'; \
probe libjansson-dev jansson.h '-Wl,--no-as-needed -ljansson'; \
probe libcmocka-dev cmocka.h '-Wl,--no-as-needed -lcmocka'; \
probe libdnnl-dev dnnl.h '-Wl,--no-as-needed -ldnnl'; \
probe libxxhash-dev xxhash.h ''; \
command -v gnuplot >/dev/null || missing="$$missing gnuplot-nox"
endef

deps: ## install missing Debian packages, or say which
	@$(PROBE); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then run=; \
	elif sudo -n true 2>/dev/null; then run='sudo -n'; else run=none; fi; \
	if [ "$$run" = none ] || ! command -v apt-get >/dev/null; then \
	  echo "error: missing packages:$$missing" >&2; \
	  echo "try: sudo apt-get install$$missing" >&2; exit 1; fi; \
	echo "installing:$$missing"; \
	$$run apt-get update -qq || true; \
	$$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  $$missing >/dev/null || { echo "error: apt-get failed" >&2; \
	  echo "try: sudo apt-get install$$missing" >&2; exit 1; }; \
	$(PROBE); \
	if [ -n "$$missing" ]; then echo "error: still missing:$$missing" >&2; exit 1; fi

# ---- running -----------------------------------------------------------------------------------
SHL_GOLDEN_DIR ?= tests/golden
RUN_TESTS = SHL_GOLDEN_DIR='$(SHL_GOLDEN_DIR)' SHL_PROGRAM='$(PROG)' SHL_TEST_OUT='$(OUT)/test-out' \
  SHL_CUDA_OBJECT='$(CURDIR)/$(EMULATED)' SHL_NCCL_LIBRARY='$(CURDIR)/$(MOCK_NCCL)' \
  $(FIXED_MAP) bash tests/run.sh
# TSan's shadow memory does not survive every address randomisation.
FIXED_MAP := $(if $(filter tsan,$(PROFILE)),$(shell setarch -R true 2>/dev/null && echo setarch -R))

check: deps ## build and run the tests (TEST, SKIP: words in names of programs)
	@+$(MAKE) --no-print-directory run-tests
check-all: deps ## the same, exhaustive
	@+SHL_TEST_ALL=1 SHL_TEST_TIMEOUT=3600 $(MAKE) --no-print-directory run-tests
	$(if $(filter release,$(PROFILE)),$(if $(TEST),,@+$(FUZZ_ASAN)))
# Files from outside are fuzzed with the sanitizers on, whatever else runs without them.
FUZZ_ASAN = SHL_TEST_ALL=1 SHL_TEST_TIMEOUT=3600 $(MAKE) --no-print-directory PROFILE=asan TEST=fuzz run-tests
check-golden: deps ## only the comparisons with golden values (SHL_GOLDEN_DIR=...)
	@+$(MAKE) --no-print-directory run-tests TEST=golden
named = $(strip $(foreach t,$2,$(if $(strip $(foreach w,$1,$(findstring $w,$(notdir $t)))),$t)))
CHOSEN_TESTS := $(filter-out $(call named,$(SKIP),$(TESTS)),$(if \
  $(TEST),$(call named,$(TEST),$(TESTS)),$(TESTS)))
# Programs that are scripts: in the release profile only.
SCRIPT_TESTS := $(addprefix $(OUT)/tests/,mutations readme cuda_bundle)
CHOSEN_SCRIPTS := $(if $(filter release,$(PROFILE)),$(if $(TEST),$(call named,$(TEST),$(SCRIPT_TESTS)),$(SCRIPT_TESTS)))
# Tests that run the program, or may: what lies below bench mostly does without.
PROGRAM_TESTS := $(OUT)/tests/test_install $(addprefix $(OUT)/tests/,$(notdir $(basename $(filter tests/bench/%,$(TEST_SRC)) \
  $(shell grep -l -r --include='test_*.c' -e SHL_PROGRAM -e support/program.h tests))))
run-tests: $(if $(CHOSEN_SCRIPTS)$(filter $(PROGRAM_TESTS),$(CHOSEN_TESTS)),$(PROG)) $(CHOSEN_TESTS) $(CHOSEN_SCRIPTS)
	@$(RUN_TESTS) $(CHOSEN_TESTS) $(CHOSEN_SCRIPTS)

# Faults planted in copies of sources: the tests must turn red.
MUTATIONS := $(OUT)/tests/mutations
$(MUTATIONS): tests/mutations/run.sh $(OUT)/flags
	@mkdir -p $(@D)
	@printf '#!/bin/sh\nSHL_COMPILE="%s" SHL_LINK="%s" SHL_LIBS="%s" exec bash tests/mutations/run.sh %s\n' \
	  '$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL)' '$(CC) $(LDFLAGS_ALL)' '-lcmocka $(LIBS)' '$(OUT)' > $@
	@chmod +x $@
mutations: $(TESTS) $(MUTATIONS) ## plant faults one by one; the tests must see each
	@SHL_TEST_ALL=1 $(MUTATIONS)

# Every command that README shows is run.
$(OUT)/tests/readme: tests/bench/readme.sh $(OUT)/flags
	@mkdir -p $(@D)
	@printf '#!/bin/sh\nexec bash tests/bench/readme.sh %s\n' '$(OUT)/shardlab' > $@
	@chmod +x $@

# ---- GPUs --------------------------------------------------------------------------------------
# Each writes what it finds as it goes, to a file below GPU_OUT besides.
GPU_OUT    ?= $(BUILD)/gpu
GPU_ARGS   ?=
GPU_PYTHON ?= python3
GPU_TESTS  := test_ops_golden test_ops_golden_llama test_engine_golden
gpu-check: all $(GPU_TESTS:%=$(OUT)/tests/%) ## on a machine with a GPU: whether it computes what it should
	@$(PROG) gpu-check --out '$(GPU_OUT)' $(GPU_ARGS)
gpu-bench: all ## its kernels and steps against its limits (RESULTS=1: kept in bench/results)
	@$(if $(filter 1,$(RESULTS)),rm -f '$(GPU_OUT)/gpu-bench.jsonl')
	@$(PROG) gpu-bench --out '$(GPU_OUT)' $(GPU_ARGS)
	@$(if $(filter 1,$(RESULTS)),mkdir -p bench/results && cp '$(GPU_OUT)/gpu-bench.jsonl' \
	  "bench/results/gpu-bench-$$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | \
	  tr -cs 'A-Za-z0-9\n' '-')-$$(date -u +%Y-%m-%d).jsonl")
gpu-peers: all ## the same models by PyTorch (GPU_PYTHON=python3 with torch), in turn
	@$(GPU_PYTHON) bench/peers/gpu_peers.py --program '$(PROG)' --out '$(GPU_OUT)' $(GPU_ARGS)

# Binaries that look for their libraries beside themselves, also for those that libraries need.
BUNDLE       := $(BUILD)/shardlab-$(VERSION)-$(ARCH)-gpu.tar.xz
BUNDLE_BIN   := $(OUT)/bundle/shardlab $(GPU_TESTS:%=$(OUT)/bundle/tests/%)
BUNDLE_RPATH  = -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/$1lib'
$(OUT)/bundle/shardlab: $(MAIN_OBJ) $(LIB)
	$(SAY) LINK $@
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_ALL) $(call BUNDLE_RPATH,../) $(MAIN_OBJ) $(LIB) $(LIBS) -o $@
define BUNDLE_TEST_RULE
$$(OUT)/bundle/tests/$$(notdir $$(basename $1)): $$(OUT)/$$(basename $1).o $$(SUPPORT) $$(LIB)
	$$(SAY) LINK $$@
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(LDFLAGS_ALL) $$(call BUNDLE_RPATH,../../) $$< $$(SUPPORT) $$(LIB) -lcmocka $$(LIBS) -o $$@
endef
$(foreach t,$(GPU_TESTS),$(eval $(call BUNDLE_TEST_RULE,$(filter %/$t.c,$(TEST_SRC)))))
gpu-bundle: all $(BUNDLE_BIN) ## one archive that runs where only a driver and CUDA's libraries are
	@bash bench/gpu_bundle.sh '$(OUT)' '$(BUNDLE)' '$(CUDA_OBJECT)'

# The bundle is unpacked and run with an empty environment.
$(OUT)/tests/cuda_bundle: tests/bench/gpu_bundle.sh bench/gpu_bundle.sh bench/gpu_run.sh $(BUNDLE_BIN) $(EMULATED)
	@mkdir -p $(@D)
	@printf '#!/bin/sh\nexec bash tests/bench/gpu_bundle.sh %s %s\n' '$(OUT)' '$(EMULATED)' > $@
	@chmod +x $@

demo: deps ## train, compare, checkpoint, plan and plot in about two minutes
	@+$(MAKE) --no-print-directory CUDA=0 all
	@bash bench/demo.sh '$(OUT)/shardlab' '$(BUILD)/demo'

bench: all ## speed of the parts against their limits (RESULTS=1: kept in bench/results)
	@mkdir -p $(if $(filter 1,$(RESULTS)),bench/results,$(BUILD))
	@$(OUT)/shardlab bench --dir '$(BUILD)' $(if $(filter 1,$(RESULTS)),--out '$(BENCH_OUT)')

# A file of this processor and day.
BENCH_CPU = $(shell sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1 | tr -cs 'A-Za-z0-9' '-')
BENCH_OUT = bench/results/bench-$(or $(BENCH_CPU:%-=%),cpu)-$(shell date -u +%Y%m%d).jsonl

# Python stays outside: the scripts run in a virtual environment of their own below PEERS.
PEERS      ?= $(BUILD)/peers
PEERS_VENV ?= $(PEERS)/venv
PEERS_ARGS ?=
BRIDGE := $(OUT)/peers-bridge
$(BRIDGE): bench/peers/bridge.c $(LIB) $(OUT)/flags
	$(SAY) LINK $@
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(LDFLAGS_ALL) $< $(LIB) $(LIBS) -o $@
$(PEERS_VENV)/ready: bench/peers/setup.sh bench/peers/requirements.txt
	@bash bench/peers/setup.sh '$(PEERS_VENV)'
peers: $(PROG) $(BRIDGE) $(PEERS_VENV)/ready ## the same training by PyTorch and DeepSpeed, beside ours
	@'$(PEERS_VENV)/bin/python' bench/peers/peers.py --program '$(PROG)' --bridge '$(BRIDGE)' \
	  --out '$(PEERS)' $(PEERS_ARGS)

# ---- care of the sources -----------------------------------------------------------------------
# The sources of the object: rules of text hold for them too.
OBJECT_TEXT := $(sort $(wildcard $(addprefix kernels/cuda/object/*.,c h cu cuh)))
lint: all ## layers, names, bans, comments, format, clang, cppcheck
	@CC='$(CC)' MAKE='$(MAKE)' sh tests/lint/lint.sh '$(LIB)' $(ALL_C) $(ALL_H) $(OBJECT_TEXT)

format: ## rewrite the sources in house format
	clang-format -i $(ALL_C) $(ALL_H) $(EXAMPLES) $(OBJECT_TEXT)
format-check: ## fail if the format differs
	@if command -v clang-format >/dev/null; then clang-format --dry-run --Werror $(ALL_C) $(ALL_H) $(EXAMPLES) $(OBJECT_TEXT); \
	else echo 'skipped: clang-format is not installed'; fi

# clang borrows omp.h from gcc, and nothing else from that folder.
CLANG ?= clang
OMP_DIR = $(BUILD)/clang
SYNTAX = $(CLANG) -fsyntax-only -std=c11 -fopenmp $(CPPFLAGS_ALL) -idirafter $(OMP_DIR) \
  $(WARN_COMMON) $(WARN_CLANG) -Werror -O2
syntax-clang: ## compile everything with clang, to nothing
	@if ! command -v $(CLANG) >/dev/null; then echo 'skipped: clang is not installed'; exit 0; fi; \
	mkdir -p $(OMP_DIR); ln -sf "$$($(CC) -print-file-name=include/omp.h)" $(OMP_DIR)/omp.h; \
	printf '%s\n' $(filter-out $(KERNEL_SRC),$(ALL_C)) | xargs -P 2 -n 8 $(SYNTAX) $(if $(KERNEL_SRC),\
	$(foreach isa,$(ISAS),&& $(SYNTAX) $(ISA_$(isa)) $(KERNEL_SRC))) $(if $(CUDA_FOUND),\
	&& $(SYNTAX) $(CUDA_INC) $(wildcard kernels/cuda/object/*.c))

keys: $(PROG) ## write the table of DeepSpeed's keys into engines/zero/README.md
	$(Q)$(PROG) check --keys > $(OUT)/keys.md
	$(Q)awk -v table=$(OUT)/keys.md '/^<!-- end of keys -->/ { skip = 0 } !skip { print } \
	  /^<!-- keys -->/ { skip = 1; while ((getline line < table) > 0) print line }' \
	  engines/zero/README.md > $(OUT)/zero.md && cp $(OUT)/zero.md engines/zero/README.md

config: ## what was found
	@echo 'profile   $(PROFILE) in $(OUT)'
	@echo "compiler  $(CC): $$($(CC) --version 2>/dev/null | head -n 1)"
	@echo 'machine   $(ARCH), kernels for: $(ISAS)'
	@echo 'flags     $(CFLAGS_ALL)'
	@echo 'kernels   $(KERNEL_FLAGS)'
	@$(PROBE); echo "missing   $${missing:-nothing}"
	@for p in libhdf5-dev libjansson-dev libcmocka-dev libdnnl-dev libxxhash-dev gnuplot-nox clang \
	  clang-format cppcheck; do printf 'package   %-16s %s\n' $$p \
	  "$$(dpkg-query -W -f '$${Version}' $$p 2>/dev/null || echo '-')"; done
	@$(CUDA_PROBE); echo "cuda      $(if $(CUDA_HOME),$(CUDA_HOME): )$${found:-nothing}"; \
	[ -z "$$missing" ] || echo "          missing:$$missing"; \
	echo 'cuda      $(if $(BUILD_CUDA),$(CUDA_OBJECT) for $(addprefix sm_,$(CUDA_ARCHS))$(if \
	$(filter 1,$(CI)),, and PTX),not built: CUDA=$(CUDA))'
	@echo 'mpi       not built in this version'

define COMMAND_ENTRY
{"directory": "$(CURDIR)", "file": "$1", "command": "$(CC) $(subst ",\",$(CPPFLAGS_ALL) \
$(CFLAGS_ALL)) $(if $(filter $(KERNEL_SRC),$1),$(KERNEL_FLAGS) $(ISA_base)) -c $1"}
endef
compile_commands.json: FORCE ## for editors and clang tools
	@printf '%s\n' '[' > $@
	@printf '%s' $(foreach f,$(ALL_C),'$(call COMMAND_ENTRY,$f)$(if $(filter-out $(lastword \
	$(ALL_C)),$f),$(COMMA))') | sed 's/},{/},\n{/g' >> $@
	@printf '\n]\n' >> $@
COMMA := ,

# A program that is linked to the archive needs what the shared library brings along by itself.
define PKG_CONFIG
prefix=$(PREFIX)
libdir=$${prefix}/lib
includedir=$${prefix}/include

Name: shardlab
Description: GPT-2 under sharded data-parallel engines, with exact byte bookkeeping
Version: $(VERSION)
Cflags: -I$${includedir}
Libs: -L$${libdir} -lshardlab $(LINK_$(PROFILE))
Libs.private: $(LIBS) -fopenmp
endef
export PKG_CONFIG

# The program writes its own man page and completions.
INSTALL_PAGE = $(if $(PROG),$(PROG) help $1 | install -D -m 644 /dev/stdin '$(DESTDIR)$(PREFIX)/share/$2')

install: all ## install below PREFIX (default /usr/local): program, libraries, shardlab.h, shardlab.pc
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/include' \
	  '$(DESTDIR)$(PREFIX)/lib/pkgconfig' '$(DESTDIR)$(PREFIX)/share/shardlab/examples'
	$(if $(PROG),install -m 755 $(PROG) '$(DESTDIR)$(PREFIX)/bin/')
	$(call INSTALL_PAGE,--man,man/man1/shardlab.1)
	$(call INSTALL_PAGE,--completion bash,bash-completion/completions/shardlab)
	$(call INSTALL_PAGE,--completion zsh,zsh/site-functions/_shardlab)
	$(call INSTALL_PAGE,--completion fish,fish/vendor_completions.d/shardlab.fish)
	install -m 644 $(API_LIB) $(API_SO) '$(DESTDIR)$(PREFIX)/lib/'
	ln -sf $(SONAME) '$(DESTDIR)$(PREFIX)/lib/libshardlab.so'
	$(if $(BUILD_CUDA),install -m 755 $(CUDA_OBJECT) '$(DESTDIR)$(PREFIX)/lib/')
	install -m 644 engines/api/shardlab.h '$(DESTDIR)$(PREFIX)/include/'
	@printf '%s\n' "$$PKG_CONFIG" > '$(DESTDIR)$(PREFIX)/lib/pkgconfig/shardlab.pc'
	install -m 644 $(EXAMPLES) '$(DESTDIR)$(PREFIX)/share/shardlab/examples/'
	@for f in $(wildcard plots/*.gp bench/data/* bench/published/*); do \
	  install -D -m 644 $$f '$(DESTDIR)$(PREFIX)/share/shardlab/'$$f; done

clean: ## remove what was built
	rm -rf $(BUILD) compile_commands.json

help: ## this list
	@echo 'make [target] [PROFILE=$(subst $() ,|,$(PROFILES))] [V=1] [WERROR=0] [CC=...]'
	@awk -F ':.*## ' '/^[a-z_.-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: all cuda has-cuda tests deps check check-all check-golden run-tests mutations gpu-check gpu-bench gpu-peers gpu-bundle demo bench peers lint format \
  format-check syntax-clang keys config install clean help FORCE
