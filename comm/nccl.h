// NCCL: how messages in GPU memory go from GPU to GPU. A transport on top of the one that started
// the ranks, threads or MPI, which carries host values, barriers and what it takes to match tags.
//
// NCCL matches the sends and receives between two ranks by order and knows no tags. So a sender
// first announces tag and size on the host, and the receiver calls NCCL for whichever of its posted
// receives the next announcement names: both call in the sender's order, whatever order the
// receives were posted in. A receive that waits while the sender's next message is one that nobody
// has asked for is an error that names both.
//
// Each direction between two ranks has a communicator and a stream of its own, so that forward
// activations and backward gradients never queue behind one another. A receive is launched only
// when its send has been. A collective is one NCCL group; two ranks that disagree about it would
// hang there, or take one thing for another, so each first tells the others on the host what it is
// about to do.
//
// Failing: a thread looks at all communicators and at how long what is launched has taken. When the
// rank has failed it aborts them; whoever waits for the GPU is woken, and the next call throws.
// Threads: the rank's own, but for that thread.
//
// This header is what duet uses of the library; tests fill the table with a stand-in.
// Read next: communicators.h.
#pragma once
#include "comm/comm.h"

struct ncclComm;  // the library's own

namespace duet {

struct NcclId {
  char bytes[128];
};

// The functions return NCCL's codes. With the communicators of `init` none blocks: kNcclInProgress
// means that async_error is to be asked until it says otherwise.
struct NcclApi {
  int (*gpu)();                      // the calling thread's current one
  void (*use_gpu)(int gpu);          // makes it the calling thread's
  std::string (*gpu_name)(int gpu);  // no other GPU's: "host, GPU 0000:1b:00.0"
  int (*get_id)(NcclId*);
  // blocks of a GPU that an operation may take
  int (*init)(ncclComm**, int ranks, const NcclId&, int rank, int max_blocks);
  int (*async_error)(ncclComm*);
  int (*send)(const void* data, size_t bytes, int peer, ncclComm*, void* cuda_stream);
  int (*recv)(void* data, size_t bytes, int peer, ncclComm*, void* cuda_stream);
  int (*group_start)();
  int (*group_end)();
  int (*finalize)(ncclComm*);
  int (*destroy)(ncclComm*);
  int (*abort)(ncclComm*);
  const char* (*error_text)(int);
};
inline constexpr int kNcclSuccess = 0, kNcclInProgress = 7;

const NcclApi& nccl_api();  // a build without NCCL: throws UsageError

}  // namespace duet
