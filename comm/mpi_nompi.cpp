// A build without MPI: ranks are threads of one process.
// Read next: communicators.h.
#include "comm/transport.h"

namespace duet {

bool have_mpi() { return false; }

void run_mpi(const RunOptions&, const Launcher&, const std::function<void(Comm&)>&) {
  throw UsageError(
      "--transport mpi: this duet was built without MPI; install OpenMPI (make looks for mpicxx) "
      "and build again");
}

}  // namespace duet
