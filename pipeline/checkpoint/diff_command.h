// The command `duet diff A B`: which tensors of two files differ, by how much, and which is the
// first of them in the order of the forward pass; so that "our loss differs" ends with a name.
//
//   A, B   a safetensors file, such as a dump (dump.h); the index of a model in several files; a
//          checkpoint of duet's or anyone's, under Hugging Face's names (checkpoint.h), or a run's
//          folder, whose newest one counts. Moments are compared where both have them
//
// Of each tensor:
//   largest |A-B|   infinite where one is not finite and the other not the same; 0 and -0 are equal
//   relative        that, divided by the tensor's largest finite magnitude in A or B: as
//                   --tolerance is meant. With tolerance 0 every difference is beyond it
//   first beyond    the first element, in order of memory, beyond the tolerance
//
// Values are compared as numbers, whatever dtypes hold them. Tensors that only one has, or that
// have another shape, differ. Little of a file is in memory at a time.
// Read next: insight/README.md.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <tuple>

#include "model/base/text.h"

namespace duet {

// Without A and B it compares two dumps that this makes in `folder`, telling on `out` how. Returns
// their paths.
using MakeDumps =
    std::function<std::array<std::string, 2>(const std::string& folder, std::ostream& out)>;
void add_diff_command(CLI::App& duet, int& exit_status, MakeDumps make_dumps);

struct DiffOptions {
  std::string a, b;
  double tolerance = 0;
  Format format = Format::text;
};

// Returns whether all tensors agree: the command's exit status is 1 otherwise. Throws UsageError
// where a file is not to be read, or the two have no tensor in common.
bool diff_command(const DiffOptions& options, std::ostream& out);

// The first tensor that differs, and its first element that does: "layer.1.output [0, 5, 3]"; empty
// if none differs.
std::string first_difference(const std::string& a, const std::string& b);

// A tensor's place in the forward pass, by its Hugging Face name or its name in a dump: values and
// weights, then gradients, then moments; in each of them the embedding, the layers, the head; what
// is not known last. Compares with <.
using ForwardPlace = std::tuple<int, size_t, int64_t, size_t, int64_t, size_t, std::string>;
ForwardPlace forward_place(const std::string& name);

}  // namespace duet
