// See layout.h.
#include "pipeline/schedule/layout.h"

#include <algorithm>
#include <limits>

#include "model/base/check.h"
#include "model/base/text.h"

namespace duet {

std::vector<int64_t> parse_split(const std::string& text) {
  std::vector<int64_t> parts;
  for (const std::string& item : split(text)) {
    const std::optional<int64_t> n = parse_number<int64_t>(item);
    require(n.has_value(), "--split: found '", shortened(item),
        "', allowed: whole numbers of layers, with commas between");
    parts.push_back(*n);
  }
  return parts;
}

// The boundaries between parts of these sizes.
static std::vector<int64_t> bounds_of(
    const std::vector<int64_t>& parts, int64_t layers, int stages) {
  std::vector<int64_t> bounds = {0};
  for (int64_t n : parts) {
    require(n >= 1 && n <= layers, "--split: found '", n,
        "', allowed: whole numbers of layers, 1 to ", layers);
    bounds.push_back(bounds.back() + n);
  }
  require(int(parts.size()) == stages && bounds.back() == layers, "--split: found ", parts.size(),
      " parts of ", bounds.back(), " layers in all, allowed: ", stages, " parts of ", layers,
      " layers");
  return bounds;
}

std::vector<int64_t> split_layers(
    const ModelConfig& c, int64_t seq_len, int stages, const std::vector<int64_t>& split) {
  require(stages <= c.n_layers, "--pp: found ", stages,
      " stages, allowed: at most one for each of the model's ", c.n_layers, " layers");
  if (!split.empty()) return bounds_of(split, c.n_layers, stages);
  std::vector<double> up_to(size_t(c.n_layers) + 1);  // cost of the first l layers
  for (int64_t l = 0; l < c.n_layers; ++l)
    up_to[size_t(l) + 1] = up_to[size_t(l)] + c.layer_flops_per_token(l, seq_len);
  up_to.back() += c.head_flops_per_token();

  // largest[s][l]: the smallest possible largest part when the first l layers are cut into s parts.
  const double kNever = std::numeric_limits<double>::infinity();
  const size_t n = size_t(c.n_layers);
  std::vector<std::vector<double>> largest(size_t(stages) + 1, std::vector<double>(n + 1, kNever));
  std::vector<std::vector<size_t>> cut(size_t(stages) + 1, std::vector<size_t>(n + 1));
  largest[0][0] = 0;
  for (size_t s = 1; s <= size_t(stages); ++s)
    for (size_t l = s, k = s - 1; l <= n; ++l) {
      // the larger k, the smaller the last part and the larger the others: the best k is in a
      // valley, and not before that of l - 1
      const auto worst = [&](size_t at) {
        return std::max(largest[s - 1][at], up_to[l] - up_to[at]);
      };
      while (k + 1 < l && worst(k + 1) <= worst(k)) ++k;
      largest[s][l] = worst(k);
      cut[s][l] = k;
    }
  std::vector<int64_t> bounds(size_t(stages) + 1);
  size_t l = n;
  for (size_t s = size_t(stages); s > 0; --s) {
    bounds[s] = int64_t(l);
    l = cut[s][l];
  }
  return bounds;
}

}  // namespace duet
