// See ends.h.
#include "model/ends.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "model/machine/launch.h"
#include "model/rows/grid_sums.h"
#include "model/rows/list.h"

namespace duet {

Embedding::Embedding(const Context& context, Params& params)
    : context_(context), table_(params.table("model.embed_tokens.weight", context.config.vocab_size,
                             context.config.d_model)) {}

Buf Embedding::forward(Saved& s, std::span<const int32_t> tokens) const {
  s.tokens.assign(tokens.begin(), tokens.end());
  s.ids = context_.device.upload(s.tokens, Use::activations);
  Buf y = context_.activation(context_.config.d_model);
  launch<GatherRows>(context_.stream(), y->rows, {.x = table_.weight, .index = s.ids, .y = y});
  return y;
}

void Embedding::backward_weight(Saved& s) const {
  std::vector<int32_t> order(s.tokens.size()), begins, ids;
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int32_t i) { return s.tokens[i] == context_.config.pad_token; });
  std::stable_sort(
      order.begin(), order.end(), [&](int32_t a, int32_t b) { return s.tokens[a] < s.tokens[b]; });
  for (size_t j = 0; j < order.size(); ++j)
    if (j == 0 || s.tokens[order[j]] != s.tokens[order[j - 1]]) {
      begins.push_back(int32_t(j));
      ids.push_back(s.tokens[order[j]]);
    }
  begins.push_back(int32_t(order.size()));
  launch_tiles<EmbedW>(context_.stream(), int64_t(ids.size()),
      {.x = s.dy,
          .tokens = context_.device.upload(order, Use::activations),
          .begins = context_.device.upload(begins, Use::activations),
          .ids = context_.device.upload(ids, Use::activations),
          .grad = table_.grad});
  s = Saved();
}

Head::Head(const Context& context, Params& params)
    : context_(context), params_(params),
      norm_(params.vector("model.norm.weight", context.config.d_model, Init::ones)),
      lm_head_(params.matrix("lm_head.weight", context.config.d_model, context.config.vocab_size)) {
  const int64_t vocab = context.config.vocab_size, padded = (vocab + 63) / 64 * 64;
  if (!context.device.is_cuda() || padded == vocab) return;
  padded_ = context.device.buffer(context.config.d_model, padded, context.dtype, Use::weights);
  context.stream().zero(padded_->data, size_t(padded_->bytes()));
}

void Head::forward(Saved& s, Buf x) {
  s.x = std::move(x);
  s.norm = norm_f(context_, s.x, norm_);
  if (padded_ && std::exchange(padded_of_, params_.changes()) != params_.changes())
    launch<PadRows>(context_.stream(), PadRows::launch_rows(lm_head_.weight),
        {.x = lm_head_.weight, .y = padded_});
  s.padded = context_.activation(weight().cols);
  s.logits = s.padded->col_slice(0, context_.config.vocab_size);
  context_.device.gemm({.a = s.norm.y, .b = weight(), .c = s.padded});
}

void Head::loss(Saved& s, std::span<const int32_t> targets, const Tensor& loss_host) const {
  Buf loss = context_.row_stats();
  launch<CrossEntropy>(context_.stream(), loss->rows,
      {.x = s.logits,
          .target = context_.device.upload(targets, Use::activations),
          .loss = loss,
          .scale = context_.loss_scale});
  context_.stream().copy(loss_host.data, loss->data, size_t(loss->bytes()));
}

Buf Head::backward_input(Saved& s) const {
  s.dx_normed = context_.activation(s.x->cols);
  context_.device.gemm({.form = Form::NT, .a = s.padded, .b = weight(), .c = s.dx_normed});
  Buf dx = context_.activation(s.x->cols);
  norm_i(context_, s.norm, norm_, s.dx_normed, dx);
  return dx;
}

void Head::backward_weight(Saved& s) const {
  linear_w(context_, s.norm.y, s.padded, lm_head_);
  norm_w(context_, s.norm, s.dx_normed, norm_);
  s = Saved();
}

}  // namespace duet
