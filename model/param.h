// Params: the parameters of one chunk of the model, their gradients, and the optimizer's
// state.
//
// A Param is one logical tensor under its Hugging Face name. All Params of a chunk lie in flat
// arenas (one each for weights, master weights, the gradient, and AdamW's two moments) at the same
// offsets, so that the optimizer and the gradient norm are one launch each, and reductions between
// ranks can take long stretches.
//
// The gradient is an exact sum over the global batch (machine/grid.h), in fp64. Norm and AdamW read
// it rounded to the accumulation type.
// Read next: context.h.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "model/machine/device.h"
#include "model/rows/optimizer.h"

namespace duet {

enum class Init { normal, ones, zeros };

struct Param {
  std::string name;            // Hugging Face's
  int64_t rows = 0, cols = 0;  // [in, out]; a vector is [1, n]
  Init init = Init::normal;
  bool transposed = false;  // stored [in, out] here, [out, in] in checkpoints
  bool decay = false;       // weight decay applies
  // false: state that is stored with the weights but has no gradient (e_score_correction_bias)
  bool trained = true;

  int64_t offset = 0;  // in elements, from the beginning of each arena
  Tensor weight;       // [rows, cols] compute type: what F and I read
  // [rows, cols] accumulation type; the same memory as weight where the types are the same
  Tensor master;
  Tensor grad;  // [rows, cols] f64
  Tensor m, v;  // [rows, cols] accumulation type: AdamW's moments
};

class Params {
 public:
  // Declares a parameter; the reference stays valid. Weight matrices decay, vectors and the
  // embedding's table do not.
  Param& matrix(const std::string& name, int64_t in, int64_t out);
  Param& vector(const std::string& name, int64_t n, Init init, bool trained = true);
  Param& table(const std::string& name, int64_t rows, int64_t cols);

  // Gives every declared parameter its memory and its initial value, a function of (seed, name,
  // element index).
  void allocate(Device& device, Dtype dtype, uint64_t seed);

  void zero_grad(Stream& stream);
  // Enqueues a look at the gradient, before it is reduced over ranks or when it is finished. Valid
  // once the stream is synchronized: squares(), of the finished one a sum for each trained
  // parameter in order of declaration; largest_gradient(), the largest magnitude in either.
  enum class Look { before, finished };
  void look(Stream& stream, Look when);
  std::vector<double> squares() const;
  double largest_gradient() const;
  // One step of AdamW on the finished gradient times `clip`; step counts from 1.
  void adamw(Stream& stream, const AdamWOptions& options, double clip, int64_t step);
  // After the masters were written: brings the weights up to date.
  void masters_changed(Stream& stream);
  int64_t changes() const { return changes_; }  // how often weights were written

  std::deque<Param>& all() { return all_; }
  const std::deque<Param>& all() const { return all_; }
  int64_t elements() const { return elements_; }  // length of an arena
  Tensor grad_arena() const { return *grad_; }    // [1, elements]

  // Elements from one expert's matrix to the next one's, where both were declared one after the
  // other with the same sizes.
  static int64_t stride(int64_t rows, int64_t cols) {
    return (rows * cols + kBlockAlign - 1) / kBlockAlign * kBlockAlign;
  }

 private:
  void place(Device& device, Dtype dtype);
  void initialize(Device& device, uint64_t seed);
  std::deque<Param> all_;
  int64_t elements_ = 0, changes_ = 0;
  Buf weight_, master_, grad_, m_, v_;           // [1, elements]
  Buf block_begin_, block_count_, block_decay_;  // [blocks, 1]
  Buf squares_, squares_host_;  // [blocks, 2] f64: sum, largest element; on the host by Look, too
  Blocks blocks_;
};

// Initial values of the parameter `name`: element i is normal with standard deviation 0.02
// (Box-Muller over a counter-based generator).
class InitialNormal {
 public:
  InitialNormal(uint64_t seed, const std::string& name);
  double operator()(int64_t i) const;

 private:
  uint64_t key_;
};

}  // namespace duet
