// The published schedules, one generator each, and the small tool they are written with.
//
// A generator emits one list per rank, of compute actions only. Each is a transcription of its
// paper's steps or pattern and knows nothing of messages or memory, nor, but for zero_bubble, of
// costs. A rank's list is built from
// *chunks*: a chunk is one of the rank's stages with the microbatches that visit it, and it counts
// its own forwards and backwards, so a step reads as in the paper: list.F(a), list.B(b).
//
// Not here: whether a list is right (checker.h) and how long it takes (simulator.h). The one to
// know is dualpipe.cpp.
// Read next: gpipe.cpp.
#pragma once
#include <vector>

#include "pipeline/schedule/profile.h"

namespace duet {

Schedule gpipe(const ScheduleSize& size);
Schedule one_f_one_b(const ScheduleSize& size);
Schedule interleaved(const ScheduleSize& size);
Schedule zb1p(const ScheduleSize& size);
Schedule zb_h2(const ScheduleSize& size);
Schedule zbv(const ScheduleSize& size);
Schedule v_half(const ScheduleSize& size);
Schedule v_min(const ScheduleSize& size);
Schedule dualpipe(const ScheduleSize& size);
Schedule dualpipev(const ScheduleSize& size);

struct Chunk {
  int stage;
  // its microbatches are first .. end-1, in this order; beyond `end` nothing is emitted
  int first, end;
  int f = 0, b = 0, w = 0;  // how many forwards, backwards (I or B), weight backwards (W) so far
};

class RankList {
 public:
  explicit RankList(std::vector<Action>& list) : list_(list) {}
  void F(Chunk& c) { emit(Kind::F, c, c.f++); }
  void B(Chunk& c) { emit(Kind::B, c, c.b++); }
  void W(Chunk& c) { emit(Kind::W, c, c.w++); }
  void I(Chunk& c) {
    queue_.push_back({Kind::W, c.stage, c.first + c.b});
    emit(Kind::I, c, c.b++);
  }
  // The W of the earliest I, of whichever chunk, whose W was not run yet: one first-in-first-out
  // queue a rank.
  void W() { list_.push_back(queue_.at(queue_head_++)); }
  void overlap(Chunk& f, Chunk& b) {
    list_.push_back({Kind::F, f.stage, f.first + f.f++, b.stage, b.first + b.b++});
  }

 private:
  void emit(Kind kind, const Chunk& c, int count) {
    if (c.first + count < c.end) list_.push_back({kind, c.stage, c.first + count});
  }
  std::vector<Action>& list_;
  std::vector<Action> queue_;
  size_t queue_head_ = 0;
};

template <class Step> void repeat(int times, Step step) {
  for (int i = 0; i < times; ++i) step();
}

// A schedule without actions. Stage s is on rank s mod pp ...
inline Schedule looped(const char* name, const ScheduleSize& size, int stages_per_rank) {
  Schedule s{
      name, size.pp, size.microbatches, false, {}, std::vector<std::vector<Action>>(size.pp)};
  for (int stage = 0; stage < size.pp * stages_per_rank; ++stage)
    s.rank_of.push_back(stage % size.pp);
  return s;
}
// ... or two stages a rank, r and 2 pp - 1 - r: down the ranks and up again.
inline Schedule v_shaped(const char* name, const ScheduleSize& size) {
  Schedule s = looped(name, size, 1);
  for (int rank = size.pp - 1; rank >= 0; --rank) s.rank_of.push_back(rank);
  return s;
}

// ZB-H2's rule for actions that cost `costs`, within the memory of 2P activations, of each of which
// `waiting` is there from its I to its W.
Schedule zero_bubble(
    const char* name, const ScheduleSize& size, const StageCosts& costs, double waiting);

// The eight steps of DualPipe on one rank, h ranks away from the nearer end of a pipeline folded to
// `half` ranks; each chunk sees m microbatches. See dualpipe.cpp.
std::vector<Action> dualpipe_steps(int half, int h, int m, Chunk a, Chunk b);

}  // namespace duet
