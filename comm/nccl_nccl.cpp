// The NCCL that duet is linked with. See nccl.h.
// Read next: nccl_nonccl.cpp.
#include <nccl.h>
#include <unistd.h>

#include "comm/nccl.h"

namespace duet {
namespace {

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId) && kNcclInProgress == ncclInProgress &&
    kNcclSuccess == ncclSuccess);

int gpu() {
  int index = 0;
  return cudaGetDevice(&index) == cudaSuccess ? index : 0;
}

std::string gpu_name(int index) {
  char host[256] = "", bus[32] = "";
  gethostname(host, sizeof host - 1);
  cudaDeviceGetPCIBusId(bus, sizeof bus, index);
  return cat(host, ", GPU ", bus);
}

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

}  // namespace

bool have_nccl() { return true; }

const NcclApi& nccl_api() {
  static constexpr NcclApi api{.gpu = gpu,
      .use_gpu = [](int index) { cudaSetDevice(index); },
      .gpu_name = gpu_name,
      .get_id =
          [](NcclId* id) { return int(ncclGetUniqueId(reinterpret_cast<ncclUniqueId*>(id))); },
      .init = init,
      .async_error = async_error,
      .send =
          [](const void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
            return int(
                ncclSend(data, bytes, ncclInt8, peer, comm, static_cast<cudaStream_t>(stream)));
          },
      .recv =
          [](void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
            return int(
                ncclRecv(data, bytes, ncclInt8, peer, comm, static_cast<cudaStream_t>(stream)));
          },
      .group_start = [] { return int(ncclGroupStart()); },
      .group_end = [] { return int(ncclGroupEnd()); },
      .finalize = [](ncclComm* comm) { return int(ncclCommFinalize(comm)); },
      .destroy = [](ncclComm* comm) { return int(ncclCommDestroy(comm)); },
      .abort = [](ncclComm* comm) { return int(ncclCommAbort(comm)); },
      .error_text = [](int code) { return ncclGetErrorString(ncclResult_t(code)); }};
  return api;
}

}  // namespace duet
