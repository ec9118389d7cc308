// The command `duet compare`: trains the same model on the same batches under each schedule and
// layout, and says whether a bit differs.
//
//   schedule or layout   final loss  bits       bubble  measured  activations  MiB  copies
//
// bits          identical to the first row's in loss, gradient norm, every gradient and, at the
//               end, every weight and moment; or the first step at which they differ, and of its
//               gradients, or the final state, the first that does in the order of the forward
//               pass. On threads both are then run again, to say which of that step's activations
//               is the first that differs, where: layer.N.output [sequence, token, column]
// bubble        of the checker's list with F = I = W = 1 and nothing gained by overlap, mean over
//               ranks
// measured      the log's idle: waited for pipeline messages, all-to-alls not among them; `-` where
//               ranks share cores or a GPU, which makes it meaningless
// activations   the most microbatches that a rank held, in parts of the model of 1/pp, as the
//               checker counts; measured in MiB
// copies        of the parameters
//
// On threads the first row is one rank. All rows have the same global batch. They compute in fp32
// unless --dtype is given: in bf16 a GPU's bits depend on the shapes of products.
// Read next: generate.h.
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "pipeline/train/options.h"

namespace duet {

void add_compare_command(CLI::App& duet, int& exit_status);

struct CompareOptions {
  // Both empty: all published schedules and, on threads, some layouts.
  std::vector<std::string> schedules;  // names or CSV files
  std::vector<std::string> layouts;    // "dp=2 ep=2 schedule=dualpipe": options over `train`
  int64_t layouts_pp = 1;              // of those that do not state it
  TrainOptions train{.preset = "tiny", .steps = 5, .pp = 4, .dtype = Dtype::f32};
};

// Returns whether all bits agree: the command's exit status is 1 otherwise.
bool compare_command(const CompareOptions& options, std::ostream& out);

}  // namespace duet
