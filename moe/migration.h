// What replicas ask of training: their gradients are one gradient, and experts travel when the
// placement changes.
//
//   sum_replicas   after the last W of a step: every replica's gradient becomes the exact sum over
//                  all replicas of its expert; with the same update replicas then stay equal to
//                  the bit
//   migrate        between steps: weights (masters, in fp32) and both moments of the slots whose
//                  expert changes
//
// Both go through one expert-parallel group, in messages between the two ranks concerned. Migration
// sends only what changed, piece by piece, so that it needs room for one piece of each arriving
// expert; a slot is overwritten only after everything that leaves it has left. All ranks of the
// group call them in the same order, each with its Moe of the same layer.
// Read next: pipeline/README.md.
#pragma once
#include "moe/moe.h"

namespace duet {

void sum_replicas(Comm& group, Device& device, Moe& moe);
void migrate(Comm& group, Device& device, Moe& moe, const ExpertPlacement& to);

// What one expert weighs on its way: master weights and two moments.
inline int64_t expert_bytes(const ModelConfig& c) {
  return 3 * (3 * c.d_model * c.d_expert) * int64_t(sizeof(float));
}

}  // namespace duet
