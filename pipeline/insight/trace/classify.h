// Classify: is a GPU event compute, communication or memory? The first that applies decides:
//
//   the rules file (--classify)
//   NCCL's metadata on the kernel: it is communication
//   its name: NCCL, RCCL, DeepEP, HybridEP, NVSHMEM, custom all-reduces, peer copies:
//             communication; other copies and memsets: memory
//   with `by_annotation`: launched under an annotation that begins with dispatch or combine
//   else compute; permutes are
//
// Tracks of duet's own traces say themselves what they are; only a rule overrides that. A rules
// file is JSON, {"rules": [RULE...]} or the bare list, tried in order. Of RULE's regular
// expressions (ECMAScript, found anywhere, case matters) all that are given must match:
//
//   {"name": "my_a2a.*", "annotation": "^moe", "stream": "^27$", "class": "communication",
//    "component": "dispatch(F)"}      class: compute, communication, memory
//
// Read next: attribute.h.
#pragma once

#include "pipeline/insight/trace/events.h"

namespace duet {

// Of a kernel's name alone.
Work work_of_name(std::string_view name);

class Classifier {
 public:
  // rules_file: empty for none. Throws UsageError for a rule that is wrong.
  Classifier(const std::string& rules_file, bool by_annotation);
  ~Classifier();
  void classify(Recording& recording, Names& names) const;  // after attribute()

 private:
  struct Rule;
  std::vector<Rule> rules_;
  bool by_annotation_;
};

}  // namespace duet
