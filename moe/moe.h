// DeepSeekMoE: shared experts that every token visits, routed experts of which each token visits topk (DeepSeek-V3, section 2.1.2).
//
//   y = residual + shared(x) + sum over the token's experts e (ascending) of w_e * expert_e(x)
//
// Moe implements the phases of model/feed_forward.h:
//   dispatch_f  router logits, top-k, the plan, rows into expert order; the shared experts
//   experts_f   routed experts, a grouped GEMM over contiguous rows
//   combine_f   the weighted sum
//   combine_i   gradients of the experts' outputs and of the weights; from these the router's
//   experts_i   routed experts, gradient for inputs; shared experts
//   dispatch_i  rows back into token order, and the router's share of dx
//   experts_w   every weight gradient
// The auxiliary-loss-free bias moves once a step, from the load that all ranks saw.
//
// Expert parallelism: the experts are spread over the ranks of a group, a contiguous part each. The ranks first tell one another
// their tokens' choices (4 bytes each), from which everyone computes who sends what (dispatch_plan.h); then tokens go out and
// results come back, all-to-all, in dispatch_f and combine_f, and gradients the same way in combine_i and dispatch_i. All ranks of
// the group call the phases in the same order.
// Read next: dispatch_plan.h, rows/router.h, rows/permute.h.
#pragma once
#include <memory>
#include <vector>

#include "comm/comm.h"
#include "model/feed_forward.h"
#include "moe/dispatch_plan.h"

namespace duet {

class Moe : public FeedForward {
 public:
  // Router and shared experts go into `params`, which all ranks have; the routed experts of this rank into `experts`.
  // microbatches: of a step, the range of dispatch_f's argument. group: expert-parallel ranks; null: all experts are here.
  struct Options {
    int microbatches = 1;
    Comm* group = nullptr;
  };
  Moe(const Context& context, Params& params, Params& experts, const std::string& prefix, const Options& options);
  ~Moe() override;

  std::unique_ptr<Saved> dispatch_f(int microbatch, const Tensor& x) override;
  void experts_f(Saved& saved, const Tensor& x) override;
  Buf combine_f(Saved& saved, const Tensor& residual) override;
  void combine_i(Saved& saved, const Tensor& dy) override;
  void experts_i(Saved& saved) override;
  Buf dispatch_i(Saved& saved) override;
  void experts_w(Saved& saved, const Tensor& x, const Tensor& dy, int half) override;

  // This rank's tokens that chose each logical expert since the last clear_load(). [n_routed]
  const std::vector<int64_t>& load() const { return load_; }
  void clear_load();
  // The sequence-wise balance loss of each microbatch, summed over its sequences, without the factor alpha. [microbatches]
  // Valid once the stream is synchronized.
  std::vector<double> balance_loss() const;

  // e_score_correction_bias += gamma where an expert's load is below the mean, -= gamma where above. load: over all ranks.
  void update_bias(const std::vector<int64_t>& load, double gamma);

 private:
  struct MoeSaved;
  static MoeSaved& of(Saved& saved);
  void route(MoeSaved& saved, int microbatch, const Tensor& x);
  void send_tokens(MoeSaved& saved, const Tensor& x, const std::vector<int32_t>& choice);
  Buf exchange(const Tensor& rows, const std::vector<int64_t>& out, const std::vector<int64_t>& in);
  Buf gather_rows(const Tensor& x, const std::vector<int32_t>& index);
  const DispatchPlan& local(const MoeSaved& saved) const;

  const Context& context_;
  Comm* group_;
  int64_t slots_;  // experts on this rank
  struct Parts;
  std::unique_ptr<Parts> parts_;  // router weights, shared and routed experts
  std::vector<int64_t> load_;
  Buf balance_host_;              // [microbatches, sequences]
};

}  // namespace duet
