# duet's build. `make` says what it found and builds ./duet; `make run`, `make test`, `make bench` are the three other targets.
#
#   CXX=g++|clang++     the host compiler (g++ 12 or newer, clang++ 14 or newer)
#   MARCH=native        the CPU's instruction set, e.g. MARCH=x86-64-v3
#   ARCH=90             the GPU's compute capability; default: the GPU found, else 80, 90 and PTX
#   CUDA= NCCL= MPI=    empty switches one off; CUDA=/path/to/toolkit names one
#   SAN=thread|address  instrumented build, in a build folder of its own
#
# Capability is chosen by file: without nvcc the *.cu files are left out and the *_nocuda.cpp files are linked instead (likewise
# *_nonccl.cpp and *_nompi.cpp), so no body has an #ifdef for it.

comma := ,
CXX   ?= g++
MARCH ?= native
JOBS  ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
MAKEFLAGS += --no-print-directory
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif

# --- what is there ---------------------------------------------------------------------------------------------------------------
CUDA ?= $(firstword $(wildcard $(CUDA_HOME) $(CUDA_PATH) /usr/local/cuda /opt/cuda /usr/lib/cuda) \
          $(patsubst %/bin/nvcc,%,$(shell command -v nvcc 2>/dev/null)))
NVCC := $(and $(CUDA),$(firstword $(wildcard $(CUDA)/bin/nvcc) $(shell command -v nvcc 2>/dev/null)))
ifneq ($(NVCC),)
CUDA_INC := $(firstword $(wildcard $(CUDA)/include $(CUDA)/targets/*/include))
CUDA_LIB := $(patsubst %/libcublas.so,%,$(firstword $(wildcard $(foreach d,$(CUDA) $(CUDA)/targets/*,\
              $(d)/lib64/libcublas.so $(d)/lib/libcublas.so) /usr/lib/*/libcublas.so /usr/lib64/libcublas.so)))
ARCH ?= $(subst .,,$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1))
GENCODE := $(if $(ARCH),-gencode arch=compute_$(ARCH)$(comma)code=sm_$(ARCH),\
             -gencode arch=compute_80$(comma)code=sm_80 -gencode arch=compute_90$(comma)code=[sm_90$(comma)compute_90])
endif
NCCL ?= $(if $(NVCC),$(patsubst %/nccl.h,%,$(firstword $(wildcard $(CUDA_INC)/nccl.h /usr/include/nccl.h))))
MPI  ?= $(shell command -v mpicxx 2>/dev/null)

# --- flags -----------------------------------------------------------------------------------------------------------------------
BUILD    := build/$(notdir $(CXX))$(if $(NVCC),-cuda)$(if $(MPI),-mpi)$(if $(SAN),-$(SAN))
CPPFLAGS += -I. $(addprefix -I,$(wildcard .deps/usr/include))
CXXFLAGS += -std=c++20 -O3 -g1 -march=$(MARCH) -ffp-contract=off -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -pthread \
            $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
# Row files: reductions over lanes may be reassociated, which is what vectorizes them. No peeling for alignment: a row's bits must
# not depend on where it lies.
ROWFLAGS := -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math -ffinite-math-only -ffp-contract=fast \
            $(if $(findstring clang,$(CXX)),,--param vect-max-peeling-for-alignment=0 -fopenmp-simd)
LDLIBS   += -pthread -ldl
ifneq ($(NVCC),)
NVFLAGS  := -std=c++20 -O3 $(GENCODE) -I. -Xcompiler -Wall -ccbin $(CXX) --expt-relaxed-constexpr -diag-suppress 20012
LDLIBS   += -L$(CUDA_LIB) -Wl,-rpath,$(CUDA_LIB) -lcublas -lcudart
CPPFLAGS += -isystem $(CUDA_INC)
endif
ifneq ($(NCCL),)
LDLIBS   += -lnccl
endif
ifneq ($(MPI),)
CPPFLAGS += $(shell $(MPI) --showme:incdirs 2>/dev/null | sed 's/[^ ]*/-isystem &/g')
LDLIBS   += $(shell $(MPI) --showme:link 2>/dev/null)
endif

# --- files -----------------------------------------------------------------------------------------------------------------------
FOLDERS := model model/rows data comm moe moe/rows pipeline pipeline/schedules pipeline/insight
ALL_CPP := $(foreach d,$(FOLDERS),$(wildcard $(d)/*.cpp))
ALL_CU  := $(foreach d,$(FOLDERS),$(wildcard $(d)/*.cu))
SRC := $(filter-out %_nocuda.cpp %_nonccl.cpp %_nompi.cpp %_nccl.cpp %_mpi.cpp,$(ALL_CPP)) \
       $(filter $(if $(NVCC),%.none,%_nocuda.cpp) $(if $(NCCL),%_nccl.cpp,%_nonccl.cpp) $(if $(MPI),%_mpi.cpp,%_nompi.cpp),$(ALL_CPP)) \
       $(if $(NVCC),$(ALL_CU))
OBJ  := $(SRC:%=$(BUILD)/%.o)
TESTOBJ := $(patsubst %,$(BUILD)/%.o,$(wildcard test/*.cpp))

duet: $(BUILD)/duet
	@ln -sf $< $@
.DEFAULT_GOAL := duet

$(BUILD)/duet: $(OBJ) $(BUILD)/main.cu.o
	$(CXX) $(CXXFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/test_duet: $(OBJ) $(TESTOBJ)
	$(CXX) $(CXXFLAGS) -o $@ $^ -lgtest -lgtest_main $(LDLIBS)

$(BUILD)/%_cpu.cpp.o: %_cpu.cpp | found
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) $(if $(findstring /rows_,/$(notdir $<)),$(ROWFLAGS)) -MMD -MP -c -o $@ $<
$(BUILD)/main.cu.o: main.cu | found
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -O1 -MMD -MP -x c++ -c -o $@ $<
$(BUILD)/%.cu.o: %.cu | found
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/%.cpp.o: %.cpp | found
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<

-include $(OBJ:.o=.d) $(TESTOBJ:.o=.d) $(BUILD)/main.cu.d

.PHONY: duet found run test bench clean
found:
	@echo "duet: $(CXX), -march=$(MARCH)$(if $(SAN), with the $(SAN) sanitizer)"
	@echo "  CUDA  $(if $(NVCC),$(NVCC)$(comma) GPU architecture $(or $(ARCH),80 and 90),not found: CPU only (all features, no GPU))"
	@echo "  NCCL  $(if $(NCCL),$(NCCL)/nccl.h,not found: no NCCL transport)"
	@echo "  MPI   $(if $(MPI),$(MPI),not found: ranks are threads of one process)"

run: duet
	./duet train
test: $(BUILD)/test_duet
	scripts/run_tests.sh $<
clean:
	rm -rf build duet
