// `duet plan --measure FILE`: a cluster file of this machine, from duet's own operations at sizes
// of its own: linear layers (F, I and W; peak, k_half and tail_waves are fitted to their times),
// the optimizer (memory), causal attention. Of a machine without a GPU a "GPU" is one core, so that
// a plan for as many ranks as it has cores is one for `duet train --threads 1`. Links are a guess
// on a machine with one device: what a copy between two ranks of a process reaches.
//
// Read next: plan_command.h.
#pragma once
#include "pipeline/insight/plan/cluster.h"

namespace duet {

Cluster measure_cluster();  // of the GPU if there is one, else of a core; seconds

}  // namespace duet
