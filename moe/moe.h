// DeepSeekMoE: shared experts that every token visits, routed experts of which each token visits topk (DeepSeek-V3, section 2.1.2).
//
//   y = residual + shared(x) + sum over the token's experts e (ascending) of w_e * expert_e(x)
//
// Moe implements the phases of model/feed_forward.h. Each sends at its end what the next one receives at its beginning:
//   dispatch_f  router logits, top-k, the plan; tokens leave; the shared experts meanwhile
//   experts_f   tokens arrive, in expert order; routed experts, a grouped GEMM over contiguous rows; results leave
//   combine_f   results arrive; the weighted sum
//   combine_i   gradients of the experts' outputs and of the weights, from these the router's; gradients leave
//   experts_i   the shared experts meanwhile; gradients arrive; routed experts, gradient for inputs; it leaves
//   dispatch_i  it arrives, and is added up in token order
//   experts_w   every weight gradient
// The auxiliary-loss-free bias moves once a step, from the load that all ranks saw.
//
// Expert parallelism: the experts are spread over the ranks of a group, a contiguous part each. The ranks first tell one another
// their tokens' choices (4 bytes each), from which everyone computes who sends what (dispatch_plan.h); then tokens go out and
// results come back, all-to-all, and gradients the same way. With a comm stream the all-to-alls run on it, and whatever is computed
// between two phases covers them; without one they block. All ranks of the group call the phases in the same order.
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
  struct Options {
    int microbatches = 1;    // of a step, the range of dispatch_f's argument
    Comm* group = nullptr;   // expert-parallel ranks; null: all experts are here
    Stream* comm = nullptr;  // for the all-to-alls; null: the compute stream
    int64_t layer = 0;       // for the recorder
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
  struct Moving;
  void send(Moving& moving, const char* name, Buf rows, const std::vector<int64_t>& out, const std::vector<int64_t>& in);
  Buf receive(Moving& moving);
  Buf gather_rows(const Tensor& x, const std::vector<int32_t>& index);
  const DispatchPlan& local(const MoeSaved& saved) const;

  const Context& context_;
  const Options options_;
  int64_t slots_;  // experts on this rank
  struct Parts;
  std::unique_ptr<Parts> parts_;  // router weights, shared and routed experts
  std::vector<int64_t> load_;
  Buf balance_host_;              // [microbatches, sequences]
};

}  // namespace duet
