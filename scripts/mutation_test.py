#!/usr/bin/env python3
"""Plants faults in the CUDA code, one at a time, and says how many the tests on the emulated GPU catch.

    scripts/mutation_test.py [PART_OF_A_NAME...]

A fault is a text of a source file replaced by another. Only the changed file is compiled anew, from a
copy in build/mutants; the sources stay as they are. A fault is caught when a test fails, crashes or
takes 20 s and five times as long as without a fault. Exit status 1 if one is not caught, or its text
is no longer in the source. Variable: CXX (default: ccache g++ where there is ccache).
"""
import os
import re
import shutil
import subprocess
import sys
import time

DEVICE, GEMM = "model/machine/device_cuda.cu", "model/machine/gemm_cuda.cu"
KERNEL, FRAGMENTS = "model/machine/gemm_kernel.cu", "model/machine/gemm_fragments.cuh"
ATTENTION, PANEL = "model/rows/fused_attention.cu", "model/rows/panel.cuh"
ENDS = "model/ends.cpp"
LOCAL, NCCL, TRANSPORT = "comm/local.cpp", "comm/nccl_nccl.cpp", "comm/transport.cpp"
COMMUNICATORS = "comm/communicators.h"
INCLUDED_BY = {COMMUNICATORS: NCCL, FRAGMENTS: KERNEL, PANEL: ATTENTION}  # a header's only source
RECORD = "    CUDA_CHECK(cudaEventRecord(e.raw, stream_));"
# name, file, text, what stands there instead
FAULTS = [
    ("an event is not recorded", DEVICE, RECORD, ""),
    ("an event is recorded in another stream", DEVICE, RECORD, RECORD.replace(", stream_", "")),
    ("a stream does not wait", DEVICE,
     "    CUDA_CHECK(cudaStreamWaitEvent(stream_, static_cast<CudaEvent&>(event).raw, 0));", ""),
    ("synchronize does not", DEVICE, "    CUDA_CHECK(cudaStreamSynchronize(stream_));", ""),
    ("an event's synchronize does not", DEVICE, "CUDA_CHECK(cudaEventSynchronize(raw));", ""),
    ("every event is done", DEVICE, "    if (status == cudaErrorNotReady) return false;",
     "    if (status == cudaErrorNotReady) return true;"),
    ("ordinary memory is not copied aside", DEVICE,
     "if (source.type == cudaMemoryTypeUnregistered) return copy_staged(dst, src, bytes);", ""),
    ("the copy aside is let go at once", DEVICE, "    staged_.push_back(std::move(s));\n    record(*staged_.back().copied);",
     ""),
    ("a copy is too short", DEVICE, "cudaMemcpyAsync(dst, src, bytes,", "cudaMemcpyAsync(dst, src, bytes - 1,"),
    ("a fill is left out", DEVICE, "CUDA_CHECK(cudaMemsetAsync(dst, 0, bytes, stream_));", ";"),
    ("a copy goes to the default stream", DEVICE, "cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream_)",
     "cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, nullptr)"),
    ("a failed host function is forgotten", DEVICE, "    task->failure->error = std::current_exception();", ""),
    ("host functions go on after a failure", DEVICE, "  if (task->failure->error) return;", ""),
    ("memory is freed under queued work", DEVICE, "cudaFreeAsync(p, compute_->raw())", "cudaFreeAsync(p, nullptr)"),
    ("memory is taken by a wait for the GPU", DEVICE, "cudaMallocAsync(&p, size_t(bytes), memory_)",
     "cudaMalloc(&p, size_t(bytes))"),
    ("a thread without a GPU asks about an event", DEVICE, "    use_gpu(gpu);\n", ""),
    ("kernels are loaded late", DEVICE, '"CUDA_MODULE_LOADING", "EAGER"', '"CUDA_MODULE_LOADING", "LAZY"'),
    ("another GPU does not reach the memory", DEVICE, "if (reaches) CUDA_CHECK(cudaMemPoolSetAccess(pool_, &peers, 1));", ""),
    ("no memory is left an error for the next kernel", DEVICE,
     "    cudaGetLastError();  // or the next row kernel would find it", ""),
    ("B is not transposed", GEMM, "g.form == Form::NT ? CUBLAS_OP_T : CUBLAS_OP_N", "CUBLAS_OP_N"),
    ("A is not transposed", GEMM, "g.form == Form::TN ? CUBLAS_OP_T : CUBLAS_OP_N", "CUBLAS_OP_N"),
    ("A's leading dimension is its columns", GEMM, "g.a.ld, g.stride_a, &beta", "g.a.cols, g.stride_a, &beta"),
    ("C's leading dimension is its rows", GEMM, "g.c.data, out, g.c.ld,", "g.c.data, out, g.c.rows,"),
    ("C is never added to", GEMM, "beta = g.accumulate ? 1 : 0", "beta = 0"),
    ("alpha is forgotten", GEMM, "const float alpha = float(g.alpha)", "const float alpha = 1"),
    ("a batch shares A", GEMM, "g.a.ld, g.stride_a, &beta", "g.a.ld, 0, &beta"),
    ("an empty sum leaves what was there", GEMM, "  if (!g.accumulate) zero(one);  // an empty sum", ""),
    ("the workspace is set before the stream", GEMM,
     "  CUDA_CHECK(cublasSetWorkspace(handle, workspace_->data, size_t(kWorkspaceBytes)));",
     "  CUDA_CHECK(cublasSetWorkspace(handle, workspace_->data, size_t(kWorkspaceBytes)));\n"
     "  CUDA_CHECK(cublasSetStream(handle, stream));"),
    ("all groups share B", KERNEL, "(tn ? z : matrix) * g.stride_b", "z * g.stride_b"),
    ("a batch's gradients are one", KERNEL, "(tn ? matrix * g.stride_c", "(tn ? (matrix - z) * g.stride_c"),
    ("blocks of k are counted from the first row", KERNEL, "(k - origin) % kBlock", "k % kBlock"),
    ("the rows that a tile lacks are stored", KERNEL, "if (row < rows && col < cols)", "if (col < cols)"),
    ("warps do not wait for a slice", KERNEL, "    __syncthreads();  // the slice is there", "    // the slice is there"),
    ("a slice's copies are not waited for", KERNEL, "await_copies<kSlices - 2>();", ""),
    ("a slice is read and written", KERNEL, "slices[turn > 0 ? turn - 1 : kSlices - 1]", "slices[turn]"),
    ("C goes through slices that are still read", KERNEL, "    __syncthreads();  // nobody reads slices any more", ""),
    ("a lane's eight elements of C are not all there", KERNEL, "    __syncwarp();\n    if (g.out", "    if (g.out"),
    ("what was in C is left out", KERNEL, "if (g.accumulate) pack = read_pack<kEight>(to);", ""),
    ("a piece goes on in the next one", KERNEL, "sums.add(g, warp);\n        warp.clear();", "sums.add(g, warp);"),
    ("a group's piece is not on the grid", KERNEL, "grid_add(sum[m][n][i], double(warp.p[m][n][i]))",
     "sum[m][n][i] + double(warp.p[m][n][i])"),
    ("the bias of a sum goes to C", KERNEL, "(sum[m][n][i] - Sum(kGridBias))", "sum[m][n][i]"),
    ("a piece between two launches is left out", KERNEL, "left = left.subspan(size_t(w.pieces));",
     "left = left.subspan(size_t(w.pieces + 1));"),
    ("a slice has no zeros behind its end", FRAGMENTS, "there * int(sizeof(T))", "16"),
    ("nor where rows are not aligned", FRAGMENTS, "j < count(n) ? from[n * apart + j] : T(0.0f)", "from[n * apart + j]"),
    ("a quarter of A is another", FRAGMENTS, "down = lane / 8 % 2 * 8,", "down = lane / 16 * 8,"),
    ("B is read as A is", FRAGMENTS, "down = lane / 16 * 8,", "down = lane / 8 % 2 * 8,"),
    ("a lane's columns are another's", FRAGMENTS, "% 4 * 2 + i % 2 + i % 4 / 2 * 8", "% 4 + i % 2 * 4 + i % 4 / 2 * 8"),
    ("a query sees the next key", ATTENTION, "s.col(i) > s.row(i)) value", "s.col(i) > s.row(i) + 1) value"),
    ("what was summed before a new maximum stays", ATTENTION, "value *= shrunk[i / 4];", ";"),
    ("half of a row's sum is left out", ATTENTION, "    f.sum[h] += __shfl_xor_sync(~0u, f.sum[h], 2);", ""),
    ("a row's maximum is half of the lanes'", ATTENTION, "for (int d = 1; d < 4; d *= 2)", "for (int d = 1; d < 2; d *= 2)"),
    ("a tile is replaced while it is read", ATTENTION, "    __syncthreads();  // nobody reads the tile any more", ""),
    ("a tile's copies are not waited for", ATTENTION, "await_copies<Of::kTiles - 1>();", ""),
    ("the queries beside a tile of keys are not visited", ATTENTION, "of_keys ? first : 0", "of_keys ? first + B::kOther : 0"),
    ("the tile after the diagonal is not visited", ATTENTION, "other + B::kOther > own", "other >= own + kFragment"),
    ("a key is seen by the query before", ATTENTION, "row > col :", "row > col + 1 :"),
    ("delta is forgotten", ATTENTION, "dp.p[0][n][i] -= stats[1];", ";"),
    ("a visited query's lse is its neighbour's", ATTENTION, "tile.stats[n * kFragment + s.col(i)]", "tile.stats[n * kFragment + s.col(i) / 2 * 2]"),
    ("gradients are not scaled", ATTENTION, "return b.scale * sum;", "return sum;"),
    ("halves of a product as an operand change places", PANEL, "pair_of(p[4], p[5]), pair_of(p[2], p[3])",
     "pair_of(p[2], p[3]), pair_of(p[4], p[5])"),
    ("a product's passage is read before all is there", PANEL, "      });\n      __syncwarp();\n      add(", "      });\n      add("),
    ("every head is the first", PANEL, "int(blockIdx.y) * per_head + col", "col"),
    ("behind the last row is what was there", PANEL, "row + r < from.rows ? from.cols - c : 0", "from.cols - c"),
    ("products go to the default stream", GEMM, "CUDA_CHECK(cublasSetStream(handle, stream));",
     "CUDA_CHECK(cublasSetStream(handle, nullptr));"),
    ("sums of bf16 may be rounded", GEMM, "int(CUBLAS_DEFAULT_MATH) | int(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)",
     "CUBLAS_DEFAULT_MATH"),
    ("an exact sum is not on the grid", GEMM, "y[i] += on_grid(double(x[i]))", "y[i] += double(x[i])"),
    ("an exact sum forgets what was there", GEMM, "y[i] += on_grid", "y[i] = on_grid"),
    ("the padded head stays what it was", ENDS, "std::exchange(padded_of_, params_.changes())",
     "padded_of_ == 0 && std::exchange(padded_of_, 1)"),
    ("an exact sum adds what its scratch held", GEMM, "  alone.accumulate = false;", ""),
    ("a message does not wait for its sender", LOCAL, "    stream.wait(*send.gpu->ready);", ""),
    ("a message does not wait for its receiver", LOCAL, "    stream.wait(*recv.gpu->ready);", ""),
    ("a message's copy is not marked", LOCAL, "recv.gpu->copied = record(stream);",
     "recv.gpu->copied = stream.device().make_event();"),
    ("nobody waits for a thread's message", LOCAL, "    stream.wait(*gpu->copied);", ""),
    ("nobody waits for NCCL's message", TRANSPORT, "  if (Event* event = landed()) stream.wait(*event);", ""),
    ("a message over NCCL does not wait", NCCL, "    edge.stream->wait(*m.gpu->ready);", ""),
    ("NCCL is not asked whether it is ready", COMMUNICATORS, "      settle(lock, text, comm);", ""),
]
# the quick ones first
TESTS = ["Cuda.*:CudaRows.*:CudaAttention.*:CommOverlap.OnA*:EmulatedMemory.Goes*:GpuDevice.*", "Cuda/CommConformance.*:Nccl/CommConformance.*:Nccl.*",
         "EmulatedRuns.Transports*:EmulatedRuns.AResumed*",
         "EmulatedRuns.SoDo*:EmulatedRuns.TooLittle*:EmulatedRuns.Bf16*:EmulatedRuns.TheLoss*"]


def run(command, **more):
    return subprocess.run(command, shell=isinstance(command, str), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def settings():
    """How make compiles and links the tests, and their objects."""
    cxx = os.environ.get("CXX", "ccache g++" if shutil.which("ccache") else "g++")
    make = ["make", "CUDA=", f"CXX={cxx}"]
    built = run(make + ["--eval", "mutants: ; @$(MAKE) $(BUILD)/test_emulated", "mutants"])
    if built.returncode:
        sys.exit(built.stdout)
    show = r"show: ; @printf '%s\n' 'compile=$(COMPILE) $(CXXFLAGS)' 'build=$(BUILD)' 'link=$(CXX) $(FLAGS) $(LDFLAGS)'" \
           r" 'objects=$(EMULATED_OBJ) $(EMULATED_TESTOBJ)' 'libs=-lgtest $(LIBS)'"
    lines = run(make + ["--eval", show, "show"]).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def test(binary, tests, limit):
    """What went wrong, or nothing."""
    try:
        done = run(f"exec {binary} --gtest_filter='{tests}' --gtest_fail_fast", timeout=limit)
    except subprocess.TimeoutExpired:
        return "takes too long"
    if done.returncode == 0:
        return None
    failed = re.findall(r"\[  FAILED  \] (\S+)", done.stdout) or re.findall(r"\[ RUN      \] (\S+)", done.stdout)[-1:]
    return failed[0] if failed else "the program ends"


def limits(make):
    """Seconds that each part of the tests may take."""
    seconds = []
    for tests in TESTS:
        begin = time.monotonic()
        wrong = test(f"{make['build']}/test_emulated", tests, None)
        if wrong:
            sys.exit(f"without a fault: {wrong}")
        seconds.append(20 + 5 * (time.monotonic() - begin))
    return seconds


def caught(fault, make, limit):
    name, path, old, new = fault
    text = open(path).read()
    if text.count(old) != 1:
        return f"its text is {text.count(old)} times in {path}"
    folder = f"build/mutants/{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    source, binary = f"{folder}/mutant.cpp", f"{folder}/test"
    where = f"{folder}/{path}" if path in INCLUDED_BY else source
    os.makedirs(os.path.dirname(where))
    open(where, "w").write(text.replace(old, new))
    if path in INCLUDED_BY:
        path = INCLUDED_BY[path]
        shutil.copy(path, source)
    gpu = "-Itest/emulated -include test/emulated/cuda_runtime.h" if path.endswith((".cu", "_nccl.cpp")) else ""
    flags = f"-w -Wno-error -iquote {folder}"
    built = run(f"{make['compile']} {gpu} {flags} -c -o {source}.o {source}")
    if built.returncode:
        return "does not compile: " + built.stdout[:400]
    own = {f"{make['build']}/{path}.o", f"{make['build']}/emulated/{path}.o"}
    objects = " ".join(o for o in make["objects"].split() if o not in own)
    built = run(f"{make['link']} -o {binary} {objects} {source}.o {make['libs']}")
    if built.returncode:
        return "does not link: " + built.stdout[:400]
    for tests, seconds in zip(TESTS, limit):
        if wrong := test(binary, tests, seconds):
            return "caught: " + wrong
    return "NOT CAUGHT"


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    chosen = [f for f in FAULTS if not sys.argv[1:] or any(a in f[0] for a in sys.argv[1:])]
    make, score = settings(), 0
    limit = limits(make)
    for fault in chosen:
        result = caught(fault, make, limit)
        score += result.startswith("caught")
        print(f"{fault[0]:48} {result}", flush=True)
    print(f"{score} of {len(chosen)} faults caught")
    return score != len(chosen)


if __name__ == "__main__":
    sys.exit(main())
