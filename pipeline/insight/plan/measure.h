// `duet plan --measure FILE`: a cluster file of this machine, from products of a few sizes, a copy
// that does not fit a cache, and an operation on one row. Links are a guess on a machine with one
// device: what a copy between two ranks of a process reaches.
//
// Read next: plan_command.h.
#pragma once
#include "pipeline/insight/plan/cluster.h"

namespace duet {

Cluster measure_cluster();  // of the GPU if there is one, else of all cores; seconds

}  // namespace duet
