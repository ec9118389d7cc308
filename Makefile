# duet's build. `make` says what it found and builds ./duet. `make run`, `make test`, `make bench`
# are the other targets; `make faults`, which fails every call of the system and cuts the power, of
# which `make test` tries a few; `make fuzz`, which feeds every reader with damaged input for
# FUZZ_SECONDS=60 in all, or FUZZ_RUNS=N inputs each; and `make study`, which prints tables of
# moe/README.md. `make emulated` builds ./duet-emulated, the product with an emulated GPU
# (test/emulated/README.md).
#
#   CXX=g++|clang++     the host compiler (g++ 12 or newer, clang++ 14 or newer)
#   MARCH=native        the CPU's instruction set, e.g. MARCH=x86-64-v3
#   ARCH=90             the GPU's compute capability; default: the GPUs found, else 80, 90 and PTX
#   CUDA= NCCL= MPI=    empty switches one off; CUDA=DIR and NCCL=DIR say where it is, MPI=FILE is
#                       OpenMPI's mpicxx
#   SAN=thread|address|undefined|address,undefined
#                       instrumented build: CPU only, ranks are threads
#   V=1                 print whole commands
#
# Capability is chosen by file: without nvcc the *.cu files are left out and the *_nocuda.cpp files
# are linked instead (likewise *_nonccl.cpp and *_nompi.cpp), so no body has an #ifdef for it, and
# builds with and without share their objects.

CXX   ?= g++
MARCH ?= native
JOBS  ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
MAKEFLAGS += --no-print-directory
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif
comma := ,
space := $() $()
Q := $(if $(filter-out 0,$(V)),,@)
# A command, said in one short line: $(call say,CXX,what)
say = $(if $(Q),@echo "  $(1)  $(2)")

# --- what is there --------------------------------------------------------------------------------
# The first of the folders $(2) that holds a shared library lib$(1), by its full name: some
# installations lack the plain .so.
lib = $(firstword $(wildcard $(foreach d,$(2),$(d)/lib$(1).so $(d)/lib$(1).so.*)))
libdirs = $(foreach d,$(1),$(d)/lib64 $(d)/lib $(d)/targets/*/lib $(d)/lib/*-linux-gnu)

ifneq ($(SAN),)
CUDA :=
MPI  :=
endif
ifeq ($(origin CUDA),undefined)
TOOLKITS := $(CUDA_HOME) $(CUDA_PATH) /usr/local/cuda /opt/cuda
CUDA := $(patsubst %/bin/nvcc,%,$(firstword $(wildcard $(addsuffix /bin/nvcc,$(TOOLKITS))) \
          $(shell command -v nvcc)))
else ifneq ($(CUDA),)
$(if $(wildcard $(CUDA)/bin/nvcc),,\
  $(error CUDA=$(CUDA): expected a toolkit, found no bin/nvcc there))
endif
CUBLAS := $(if $(CUDA),$(call lib,cublas,$(call libdirs,$(abspath $(CUDA)))))
CUDART := $(if $(CUDA),$(call lib,cudart,$(call libdirs,$(abspath $(CUDA)))))
NVCC   := $(if $(CUBLAS),$(if $(CUDART),$(CUDA)/bin/nvcc))
ifneq ($(NVCC),)
ARCH ?= $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
          sed -n 's/^\([0-9]*\)\.\([0-9]\)$$/\1\2/p' | sort -nu)
ARCH := $(ARCH)
gencode = -gencode arch=compute_$(1)$(comma)code=$(2)
GENCODE := $(if $(ARCH),$(foreach a,$(ARCH),$(call gencode,$(a),sm_$(a))),\
             $(call gencode,80,sm_80) $(call gencode,90,[sm_90$(comma)compute_90]))
NCCL ?= $(firstword $(foreach d,$(CUDA) /usr/local /usr,\
          $(if $(wildcard $(d)/include/nccl.h),$(d))))
NCCL_LIB := $(if $(NCCL),$(call lib,nccl,$(call libdirs,$(abspath $(NCCL)))))
endif
ifeq ($(origin MPI),undefined)  # MPICH's mpicxx does not know --showme
MPI := $(shell mpicxx --showme:command >/dev/null 2>&1 && \
         [ "$$(mpicxx -dumpmachine | cut -d- -f1)" = "$$($(CXX) -dumpmachine | cut -d- -f1)" ] && \
         command -v mpicxx)
endif
CLANG := $(findstring clang,$(shell $(CXX) --version 2>/dev/null))

# --- flags ----------------------------------------------------------------------------------------
# CPPFLAGS, CXXFLAGS, LDFLAGS and NVCCFLAGS are the user's and come last. system: include folders,
# but for the compiler's own, which must keep their place.
system   = $(addprefix -isystem ,$(filter-out /usr/include,$(wildcard $(1))))
BUILD   := build/$(notdir $(lastword $(CXX)))-$(MARCH)$(addprefix -,$(subst $(comma),-,$(SAN)))
CAPABLE := $(if $(NVCC),-cuda)$(if $(NCCL_LIB),-nccl)$(if $(MPI),-mpi)
PREFLAGS := -I. $(call system,.deps/usr/include /opt/homebrew/include)
# of these the one that the compiler takes MARCH by; none: there is no such compiler or processor
SET := $(firstword $(foreach s,march mcpu,\
         $(shell $(CXX) -$s=$(MARCH) -E -x c /dev/null >/dev/null 2>&1 && echo $s)))
FLAGS   := -std=c++20 -O3 -g1 -ffp-contract=off -pthread -Wall -Wextra -Wno-unused-parameter \
           -Wno-missing-field-initializers -Wno-psabi -$(SET)=$(MARCH) \
           $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer)
# Row files: reductions over lanes may be reassociated, which is what vectorizes them. No peeling
# for alignment: a row's bits must not depend on where it lies.
ROWFLAGS := -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math \
            -ffinite-math-only -ffp-contract=fast \
            $(if $(CLANG),,--param vect-max-peeling-for-alignment=0 -fopenmp-simd)
LIBS    := $(addprefix -L,$(wildcard .deps/usr/lib/* /opt/homebrew/lib)) -lz -pthread -ldl
ifneq ($(NVCC),)
NVFLAGS := -std=c++20 -O3 $(GENCODE) -I. -Xcompiler -Wall -ccbin $(lastword $(CXX)) \
           --expt-relaxed-constexpr -diag-suppress 20012
PREFLAGS += $(call system,$(CUDA)/include $(if $(NCCL_LIB),$(NCCL)/include))
CUDALIBS := $(foreach l,$(CUBLAS) $(CUDART) $(NCCL_LIB),\
              $(l) -Wl$(comma)-rpath$(comma)$(patsubst %/,%,$(dir $(l))))
endif
ifneq ($(MPI),)
PREFLAGS += $(call system,$(shell $(MPI) --showme:incdirs))
LIBS    += $(shell $(MPI) --showme:link)
endif
COMPILE = $(CXX) $(PREFLAGS) $(CPPFLAGS) $(FLAGS)

# --- files ----------------------------------------------------------------------------------------
FOLDERS := model model/base model/machine model/rows data comm moe moe/rows \
           $(addprefix pipeline/,schedule schedule/published checkpoint insight/trace \
             insight/plan insight/pictures train)
ALL_CPP := $(foreach d,$(FOLDERS),$(wildcard $(d)/*.cpp))
CU  := $(if $(NVCC),$(foreach d,$(FOLDERS),$(wildcard $(d)/*.cu)))
CPP := $(filter-out %_nocuda.cpp %_nonccl.cpp %_nompi.cpp %_nccl.cpp %_mpi.cpp,$(ALL_CPP)) \
       $(filter $(if $(NVCC),,%_nocuda.cpp) $(if $(NCCL_LIB),%_nccl.cpp,%_nonccl.cpp) \
         $(if $(MPI),%_mpi.cpp,%_nompi.cpp),$(ALL_CPP))
CUBUILD := $(BUILD)/sm_$(or $(subst $(space),_,$(ARCH)),80_90)
OBJ     := $(CPP:%=$(BUILD)/%.o) $(CU:%=$(CUBUILD)/%.o)
TESTOBJ := $(patsubst %,$(BUILD)/%.o,$(wildcard test/*.cpp))
STUDIES := $(BUILD)/test/study/eplb_study.cpp.o  # tested too
STUDYOBJ := $(patsubst %,$(BUILD)/%.o,$(wildcard test/study/*.cpp))

# The library that makes calls of the system fail: it needs glibc, and no sanitizer beside it.
FAULTS := $(if $(SAN),,$(if $(filter Linux,$(shell uname)),$(BUILD)/faults.so))
FAULTOBJ := $(patsubst %,$(BUILD)/%.o,$(wildcard test/faults/*.cpp))
# What the fuzzed readers need of duet.
FUZZOBJ := $(patsubst %,$(BUILD)/%.o,\
  $(filter-out $(if $(CLANG),test/fuzz/loop.cpp),$(wildcard test/fuzz/*.cpp)) \
  $(filter model/base/% model/config.cpp model/machine/% data/% comm/% moe/eplb% \
    moe/segment_split.cpp moe/load_monitor.cpp pipeline/schedule/% \
    pipeline/checkpoint/durable.cpp pipeline/checkpoint/safetensors.cpp \
    pipeline/insight/pictures/% pipeline/insight/trace/% pipeline/train/options.cpp,$(CPP)))

duet: $(BUILD)/duet$(CAPABLE)
	@ln -sf $< $@
.DEFAULT_GOAL := duet

$(BUILD)/duet$(CAPABLE): $(OBJ) $(BUILD)/main.cu.o
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) $(CUDALIBS)

$(BUILD)/test_duet$(CAPABLE): $(OBJ) $(TESTOBJ) $(STUDIES)
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ -lgtest_main -lgtest $(LIBS) $(CUDALIBS)

# The emulated GPU: the files that need CUDA or NCCL are compiled by the host's compiler against
# test/emulated's headers; all other objects are the CPU-only build's.
EMULATOR := $(filter-out %_test.cpp %/main.cpp,$(wildcard test/emulated/*.cpp))
EMULATED := $(foreach d,$(FOLDERS),$(wildcard $(d)/*.cu)) $(filter %_nccl.cpp,$(ALL_CPP))
EMULATED_OBJ := $(patsubst %,$(BUILD)/%.o,$(EMULATOR) \
                  $(filter-out %_nocuda.cpp %_nonccl.cpp %_nccl.cpp,$(CPP))) \
                $(EMULATED:%=$(BUILD)/emulated/%.o)
EMULATED_TESTOBJ := $(patsubst %,$(BUILD)/%.o,test/cuda_test.cpp test/comm_test.cpp \
                      $(wildcard test/cuda_*_test.cpp) test/emulated/main.cpp \
                      $(wildcard test/emulated/*_test.cpp))

$(BUILD)/duet-emulated: $(EMULATED_OBJ) $(BUILD)/main.cu.o
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/test_emulated: $(EMULATED_OBJ) $(EMULATED_TESTOBJ)
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ -lgtest $(LIBS)
$(BUILD)/emulated/%.o: % | found
	@mkdir -p $(@D)
	$(call say,EMU ,$<)
	$(Q)$(COMPILE) -Itest/emulated -include test/emulated/cuda_runtime.h $(CXXFLAGS) \
	  -MMD -MP -x c++ -c -o $@ $<

$(BUILD)/study$(CAPABLE): $(OBJ) $(STUDYOBJ)
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/faults.so: $(FAULTOBJ)
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(LDFLAGS) -shared -o $@ $^ -ldl
$(FAULTOBJ): CXXFLAGS += -fPIC

$(BUILD)/fuzz: $(FUZZOBJ)
	$(call say,LINK,$@)
	$(Q)$(CXX) $(FLAGS) $(if $(CLANG),-fsanitize=fuzzer) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/%_cpu.cpp.o: %_cpu.cpp | found
	@mkdir -p $(@D)
	$(call say,CXX ,$<)
	$(Q)$(COMPILE) $(if $(findstring /rows_,/$(notdir $<)),$(ROWFLAGS)) $(CXXFLAGS) \
	  -MMD -MP -c -o $@ $<
$(BUILD)/main.cu.o: main.cu $(BUILD)/version.h | found
	@mkdir -p $(@D)
	$(call say,CXX ,$<)
	$(Q)$(COMPILE) -O1 -include $(BUILD)/version.h $(CXXFLAGS) -MMD -MP -x c++ -c -o $@ $<
# They may include what is written for nvcc.
$(filter $(BUILD)/test/emulated/%,$(EMULATED_TESTOBJ)): CPPFLAGS += -Itest/emulated
# What holds a command's options includes CLI11, which takes long to optimize.
OPTIONS := %_command.cpp $(addprefix pipeline/train/,options.cpp generate.cpp bench.cpp)
$(patsubst %,$(BUILD)/%.o,$(filter $(OPTIONS),$(ALL_CPP))): \
  FLAGS += -O1
# Nor are tests worth optimizing for long: what they test is compiled as ever.
$(TESTOBJ) $(EMULATED_TESTOBJ): FLAGS += -O1
$(CUBUILD)/%.cu.o: %.cu | found
	@mkdir -p $(@D)
	$(call say,NVCC,$<)
	$(Q)$(NVCC) $(NVFLAGS) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(BUILD)/%.cpp.o: %.cpp | found
	@mkdir -p $(@D)
	$(call say,CXX ,$<)
	$(Q)$(COMPILE) $(CXXFLAGS) -MMD -MP -c -o $@ $<

# The embedded data: the text of all sources and READMEs, joined in sorted order; replaced only when
# it changes.
TEXT := $(sort $(foreach d,. $(FOLDERS) scripts test,\
          $(foreach f,*.h *.cpp *.cu README.md,$(wildcard $(d)/$(f)))))
$(BUILD)/embedded.txt: found
	@mkdir -p $(@D)
	@cat $(TEXT) > $@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
$(BUILD)/data/embedded.cpp.o: CPPFLAGS += -DEMBEDDED_TEXT='"$(BUILD)/embedded.txt"'
$(BUILD)/data/embedded.cpp.o: $(BUILD)/embedded.txt

# What duet --version says of the build; replaced only when it changes.
COMMIT = $(or $(shell git describe --always --dirty 2>/dev/null),unknown)
MPI_VERSION = $(or $(if $(MPI),$(shell $(MPI) --showme:version 2>/dev/null)),none)
$(BUILD)/version.h: found
	@mkdir -p $(@D)
	@printf '%s\n' '#define DUET_BUILD "$(COMMIT)\n" \
	  "compiler         $(shell $(CXX) --version 2>/dev/null | head -n 1)\n" \
	  "CUDA             $(or $(if $(NVCC),$(lastword $(shell $(NVCC) --version))),none)\n" \
	  "NCCL             $(or $(NCCL_LIB),none)\n" \
	  "MPI              $(MPI_VERSION)\n"' > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
# What the assembler includes is no dependency that the compiler finds.
$(BUILD)/pipeline/insight/plan/cluster.cpp.o: $(wildcard pipeline/insight/plan/clusters/*.json)
$(BUILD)/pipeline/insight/plan/hf_config.cpp.o: pipeline/insight/plan/models/families.json
$(BUILD)/pipeline/insight/plan/model.cpp.o: pipeline/insight/plan/models/public.json

-include $(OBJ:.o=.d) $(TESTOBJ:.o=.d) $(STUDYOBJ:.o=.d) $(FAULTOBJ:.o=.d) $(FUZZOBJ:.o=.d)
-include $(BUILD)/main.cu.d $(EMULATED_OBJ:.o=.d) $(EMULATED_TESTOBJ:.o=.d)

.PHONY: duet emulated found run test faults fuzz fuzzed bench study clean
GPUS := $(or $(ARCH),80$(comma) 90 and PTX)
NEEDED := !__has_include(<CLI/CLI.hpp>) || !__has_include(<nlohmann/json.hpp>) || \
          !__has_include(<zlib.h>)
found:
	@$(if $(SET),,echo "$(CXX) is missing, or takes neither -march=$(MARCH) nor -mcpu; for another" \
	  "machine than this name one, e.g. MARCH=armv8-a"; exit 1)
	@echo "duet: $(CXX), -$(SET)=$(MARCH)$(if $(SAN), with the $(SAN) sanitizer)"
	@echo "  CUDA  $(if $(NVCC),$(NVCC)$(comma) for GPU architecture $(GPUS),none: CPU only)"
	@echo "  NCCL  $(or $(NCCL_LIB),none: no NCCL transport)"
	@echo "  MPI   $(or $(MPI),none: ranks are threads of one process)"
	@printf '#if $(NEEDED)\n#error\n#endif\n' | \
	  $(COMPILE) $(CXXFLAGS) -E -x c++ - >/dev/null 2>&1 || \
	  { echo "CLI11, nlohmann-json or zlib is missing: run scripts/setup.sh"; exit 1; }

emulated: $(BUILD)/duet-emulated
	@ln -sf $< duet-emulated
run: duet
	./duet train --steps 500 --log-every 20 --sample 400 --out out --overwrite
test: $(BUILD)/test_duet$(CAPABLE) $(if $(SAN),,$(BUILD)/test_emulated) $(FAULTS) \
      $(patsubst main.cu,duet,$(wildcard main.cu))
	scripts/run_tests.sh $(filter $(BUILD)/test_%,$^)
faults: $(BUILD)/test_duet$(CAPABLE) $(FAULTS) duet
	DUET_FAULTS=all GTEST_FILTER='Faults.*' $<
# libFuzzer comes with clang; another compiler gets test/fuzz/loop.cpp.
FUZZCXX ?= $(if $(CLANG),$(CXX),$(or $(shell command -v clang++ || command -v clang++-14),$(CXX)))
FUZZSAN := address,undefined$(if $(findstring clang,$(FUZZCXX)),$(comma)fuzzer-no-link)
fuzz:
	@$(MAKE) CXX="$(FUZZCXX)" SAN=$(FUZZSAN) CXXFLAGS="-O1 $(CXXFLAGS)" fuzzed
fuzzed: $(BUILD)/fuzz
	scripts/fuzz.sh $<
bench: duet $(BUILD)/study$(CAPABLE)
	scripts/bench.sh ./duet $(BUILD)/study$(CAPABLE)
study: $(BUILD)/study$(CAPABLE)
	$< eplb
clean:
	rm -rf build duet duet-emulated
