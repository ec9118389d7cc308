// DeepSeekMoE: shared experts that every token visits, routed experts of which each token visits
// topk (DeepSeek-V3, section 2.1.2).
//
//   y = residual + shared(x) + sum over the token's experts e (ascending) of w_e * expert_e(x)
//
// Moe implements the phases of model/feed_forward.h. What leaves in one arrives in the next:
//   router_f    router logits, top-k; the choices leave
//   dispatch_f  the choices arrive, and the host makes the plan; tokens leave. Where none leave,
//               experts_f does it: behind the shared experts a GPU does not wait for the plan
//   shared_f    the shared experts
//   experts_f   tokens arrive, in expert order; routed experts, a grouped GEMM over contiguous
//               rows; results leave
//   combine_f   results arrive; the weighted sum
//   combine_i   gradients of the experts' outputs leave; gradients of the weights, from these the
//               router's
//   shared_i    the shared experts and the router, gradient for inputs
//   experts_i   gradients arrive; routed experts, gradient for inputs; it leaves
//   dispatch_i  it arrives, and is added up in token order
//   experts_w   every weight gradient
// The auxiliary-loss-free bias moves once a step, from the load that all ranks saw.
//
// Expert parallelism: the experts are spread over the ranks of a group, a contiguous part each. The
// ranks first tell one another their tokens' choices (4 bytes each), from which everyone computes
// who sends what (dispatch_plan.h); then tokens go out and results come back, all-to-all, and
// gradients the same way. With a comm stream the all-to-alls run on it, and whatever is computed
// between two phases covers them; without one they block. All ranks of the group call the phases in
// the same order. A group of one is the same without messages, and without a copy more.
//
// Replicas: a rank has slots, and a placement (eplb.h) says which expert is in each; an expert may
// be in several. The router knows experts only. Which replica a token visits is decided when all
// choices are known, so that ranks finish together (eplb_quota.h). Gradients of replicas are added,
// and experts moved to other slots, by migration.h.
// Read next: dispatch_plan.h.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "comm/comm.h"
#include "model/feed_forward.h"
#include "model/swiglu.h"
#include "moe/dispatch_plan.h"
#include "moe/eplb_quota.h"
#include "moe/rows/router.h"

namespace duet {

class Moe : public FeedForward {
 public:
  // Router and shared experts go into `params`, which all ranks have; the routed experts of this
  // rank into `expert_params`.
  struct Options {
    int microbatches = 1;       // of a step, the range of Saved::microbatch
    Comm* group = nullptr;      // expert-parallel ranks; null: all experts are here
    Stream* comm = nullptr;     // for what travels; null: the compute stream
    int64_t layer = 0;          // of the model
    ExpertPlacement placement;  // its GPUs are the ranks of the group
    int ranks_per_node = 1;     // of the group's
    bool balanced = false;      // --force-balanced-routing
    ReplicaSplit split = ReplicaSplit::segment;
  };
  Moe(const Context& context, Params& params, Params& expert_params, const std::string& prefix,
      const Options& options);

  std::unique_ptr<Saved> make_saved() const override;
  void run(Phase phase, Saved& saved) override;

  // This rank's tokens that chose each logical expert since the last clear_load(). [n_routed]
  const std::vector<int64_t>& load() const { return load_; }
  void clear_load();
  // The sequence-wise balance loss of a sequence of a microbatch, without the factor alpha. Valid
  // once the stream is synchronized.
  double balance_loss(int64_t microbatch, int64_t sequence) const {
    return balance_host_->get(microbatch * balance_host_->cols + sequence);
  }

  // Tokens that each rank of the group computed since the last clear_load(), then those of each
  // microbatch's busiest rank, for whom the others wait. Empty in a group of one. [ranks + 1]
  const std::vector<int64_t>& work() const { return work_; }

  int64_t layer() const { return options_.layer; }
  const ExpertPlacement& placement() const { return placement_; }
  // Slots hold other experts from now on: parameters take their names. What is in them is the
  // caller's concern (migration.h).
  void set_placement(ExpertPlacement placement);
  std::array<Param*, 3> slot(int64_t s);  // gate, up and down of the expert in slot s of this rank

  // e_score_correction_bias += gamma where an expert's load is below the mean, -= gamma where
  // above. load: over all ranks.
  void update_bias(const std::vector<int64_t>& load, double gamma);

 private:
  struct MoeSaved;
  void router_f(MoeSaved& saved);
  void dispatch_f(MoeSaved& saved);
  void experts_f(MoeSaved& saved);
  void combine_f(MoeSaved& saved);
  void combine_i(MoeSaved& saved);
  void experts_i(MoeSaved& saved);
  void dispatch_i(MoeSaved& saved);

  bool alone() const { return placement_.gpus == 1; }
  Scope scope(Stream& stream, const char* track, const char* name, int64_t bytes = 0) const;
  Stream& comm_after_compute() const;
  void gather_choices(MoeSaved& saved);
  std::vector<std::vector<int32_t>> wait_for_choices(MoeSaved& saved);
  void count_work(const std::vector<std::vector<int32_t>>& choices);
  Buf gather_rows(const Tensor& x, const std::vector<int32_t>& index) const;
  Buf in_order(Buf rows, const std::vector<int32_t>& index) const;
  using Offsets = std::vector<int64_t>;
  void send(MoeSaved& saved, const char* name, Buf rows, const Offsets& out, const Offsets& in);
  Buf receive(MoeSaved& saved);

  const Context& context_;
  const Options options_;
  ExpertPlacement placement_;
  const int me_;   // in the group
  int64_t slots_;  // on this rank
  std::string prefix_;
  Params& expert_params_;
  size_t first_param_;  // of the slots in expert_params_: all gates, all ups, all downs
  RouterShape shape_;
  Param &gate_, &bias_;
  std::optional<Swiglu> shared_;  // without shared experts none
  Swiglu routed_;
  std::vector<int64_t> load_;
  std::vector<int64_t> work_;
  Buf balance_host_;  // [microbatches, sequences]
  Buf bias_host_;     // [1, n_routed] while update_bias is under way
};

}  // namespace duet
