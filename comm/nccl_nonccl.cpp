// A build without NCCL.
// Read next: ranks.cpp.
#include "comm/nccl.h"

namespace duet {

bool have_nccl() { return false; }

const NcclApi& nccl_api() {
  throw UsageError("--transport nccl: this duet was built without NCCL");
}

}  // namespace duet
