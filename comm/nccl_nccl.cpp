// The NCCL that duet is linked with. See nccl.h.
#include <nccl.h>
#include <unistd.h>

#include "comm/nccl.h"

namespace duet {
namespace {

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId) && kNcclInProgress == ncclInProgress && kNcclSuccess == ncclSuccess);

int gpu() {
  int index = 0;
  return cudaGetDevice(&index) == cudaSuccess ? index : 0;
}

void use_gpu(int index) { cudaSetDevice(index); }

std::string gpu_name(int index) {
  char host[256] = "", bus[32] = "";
  gethostname(host, sizeof host - 1);
  cudaDeviceGetPCIBusId(bus, sizeof bus, index);
  return cat(host, ", GPU ", bus);
}

int get_id(NcclId* id) { return ncclGetUniqueId(reinterpret_cast<ncclUniqueId*>(id)); }

int init(ncclComm** comm, int ranks, const NcclId& id, int rank, int max_blocks) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.maxCTAs = max_blocks;
  ncclUniqueId unique;
  memcpy(&unique, &id, sizeof unique);
  return ncclCommInitRankConfig(comm, ranks, unique, rank, &config);
}

int async_error(ncclComm* comm) {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t code = ncclCommGetAsyncError(comm, &state);
  return code == ncclSuccess ? state : code;
}

int send(const void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
  return ncclSend(data, bytes, ncclInt8, peer, comm, static_cast<cudaStream_t>(stream));
}
int recv(void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
  return ncclRecv(data, bytes, ncclInt8, peer, comm, static_cast<cudaStream_t>(stream));
}
int group_start() { return ncclGroupStart(); }
int group_end() { return ncclGroupEnd(); }
int finalize(ncclComm* comm) { return ncclCommFinalize(comm); }
int destroy(ncclComm* comm) { return ncclCommDestroy(comm); }
int abort(ncclComm* comm) { return ncclCommAbort(comm); }
const char* error_text(int code) { return ncclGetErrorString(ncclResult_t(code)); }

}  // namespace

bool have_nccl() { return true; }

const NcclApi& nccl_api() {
  static constexpr NcclApi api{gpu,  use_gpu, gpu_name,    get_id,    init,     async_error, send,
                               recv, group_start, group_end, finalize, destroy, abort,       error_text};
  return api;
}

}  // namespace duet
