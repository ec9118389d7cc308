// See checker.h. The three rules, in their order (each relies on the ones before), and the
// count of activations.
#include "pipeline/schedule/checker.h"

#include <array>

#include "pipeline/schedule/add_comms.h"
#include "pipeline/schedule/run_list.h"

namespace duet {
namespace {

constexpr int64_t kFew = 1 << 20;  // of what takes no memory to speak of

struct Cell {
  int rank = -1, index = -1;
};

// Of a file its cell, else the place among its rank's actions; from 1.
int number(const Schedule& s, const Cell& at) {
  return s.cells.empty() ? at.index + 1 : s.cells[at.rank][at.index];
}

std::string where(const Schedule& s, const Cell& at) {
  return s.cells.empty() ? cat("action ", number(s, at), " of rank ", at.rank)
                         : cat("line ", s.lines[at.rank], ", cell ", number(s, at));
}

// The lists around the marked cells, one row a rank. With many ranks only those near the first mark
// are shown.
std::string grid(const Schedule& s, const std::vector<Cell>& marks) {
  constexpr int kRanks = 16, kBefore = 4, kAfter = 5;
  const int first = std::clamp(marks.front().rank - kRanks / 2, 0, std::max(0, s.pp - kRanks));
  std::string out;
  for (int rank = first; rank < std::min(s.pp, first + kRanks); ++rank) {
    int marked = -1, center = marks.front().index;
    for (const Cell& mark : marks)
      if (mark.rank == rank) marked = center = mark.index;
    const auto& row = s.ranks[rank];
    const int begin =
        std::clamp(center - kBefore, 0, std::max(0, int(row.size()) - kBefore - kAfter));
    const int end = std::min(begin + kBefore + kAfter, int(row.size()));
    const std::string line = s.lines.empty() ? "" : cat(" (line ", s.lines[rank], ")"),
                      from = begin > 0 ? cat("  .. from ", number(s, {rank, begin})) : "";
    out += cat("\n  rank ", rank, line, from, ":");
    for (int i = begin; i < end; ++i) {
      const std::string text = to_string(row[i]);
      out += i == marked ? cat(" >", text, "<") : cat("  ", text);
    }
    if (end < int(row.size())) out += cat("  .. ", int(row.size()) - end, " more");
  }
  return out;
}

template <class... Parts>
[[noreturn]] void refuse(const Schedule& s, const std::vector<Cell>& marks, const Parts&... what) {
  throw UsageError(cat("schedule ", s.name, ": ", what..., grid(s, marks)));
}

// Before memory is taken for all that rule 1 looks for: two actions, at least, for each microbatch
// in a stage.
void check_count(const Schedule& s) {
  int64_t parts = 0;
  for_all_parts(s, [&](int, int, const Action&) { ++parts; });
  const int64_t visits = int64_t(s.model_stages()) * s.microbatches;
  if (visits > kFew && parts < 2 * visits)
    refuse(s, {{0, 0}}, "found ", parts, " actions, expected at least ", 2 * visits, " for ",
        s.microbatches, " microbatches through ", s.model_stages(), " stages");
}

// Rule 1: everything once, and where it belongs.
void check_set(const Schedule& s) {
  const int stages = s.stages(), M = s.microbatches;
  using Seen = std::array<Cell, 4>;  // by kind F, I, W, B
  std::vector<Seen> seen(size_t(stages) * M);
  for_all_parts(s, [&](int rank, int i, const Action& a) {
    const std::string text = to_string(a);
    const std::vector<Cell> here = {{rank, i}};
    if (a.is_comm()) refuse(s, here, "expected compute actions only, found ", text);
    if (a.stage < 0 || a.stage >= stages)
      refuse(s, here, "expected stages 0 to ", stages - 1, ", found ", text);
    if (a.microbatch < 0 || a.microbatch >= M)
      refuse(s, here, "expected microbatches 0 to ", M - 1, ", found ", text);
    if (!s.visits(a.stage, a.microbatch))
      refuse(s, here, text, ": microbatch ", a.microbatch, " does not visit stage ", a.stage,
          ", only stages ", s.first_stage(a.microbatch), " to ", s.last_stage(a.microbatch));
    if (s.rank_of[a.stage] != rank)
      refuse(s, here, text, " is on rank ", rank, ", but stage ", a.stage, " is on rank ",
          s.rank_of[a.stage]);
    Seen& all = seen[size_t(a.stage) * M + a.microbatch];
    const auto exclude = [&](Kind other) {
      const Cell there = all[size_t(other)];
      if (there.rank < 0) return;
      const std::string what =
          a.kind == other ? " comes a second time" : cat(" beside a ", kind_name(other));
      refuse(s, here, text, what, ", the first is ", where(s, there));
    };
    exclude(a.kind);
    if (a.kind == Kind::B) exclude(Kind::I), exclude(Kind::W);
    if (a.kind == Kind::I || a.kind == Kind::W) exclude(Kind::B);
    all[size_t(a.kind)] = {rank, i};
  });
  for (int stage = 0; stage < stages; ++stage)
    for (int m = s.two_directions && stage >= stages / 2 ? M / 2 : 0; m < M && s.visits(stage, m);
         ++m) {
      const Seen& all = seen[size_t(stage) * M + m];
      const auto has = [&](Kind kind) { return all[size_t(kind)].rank >= 0; };
      const char* lacks = !has(Kind::F)    ? "an F"
          : has(Kind::B)                   ? nullptr
          : !has(Kind::I) && !has(Kind::W) ? "a B, or an I and a W"
          : !has(Kind::I)                  ? "an I"
          : !has(Kind::W)                  ? "a W"
                                           : nullptr;
      if (!lacks) continue;
      Cell near{s.rank_of[stage], 0};
      for (const Cell& cell : all) near.index = std::max(near.index, cell.index);
      refuse(s, {near}, "microbatch ", m, " lacks ", lacks, " at stage ", stage, " on rank ",
          near.rank);
    }
}

void refuse_stuck(const Schedule& s, const std::vector<Stuck>& stuck, const char* what) {
  if (stuck.empty()) return;
  std::vector<Cell> marks;
  std::string waits;
  for (const Stuck& rank : stuck) {
    marks.push_back({rank.rank, rank.index});
    if (marks.size() > 4) continue;
    waits += cat("; rank ", rank.rank, " at ", to_string(s.ranks[rank.rank][rank.index]), " (",
        where(s, marks.back()), ") waits for ", to_string(rank.missing));
  }
  if (marks.size() > 4) waits += cat("; and ", marks.size() - 4, " ranks more");
  refuse(s, marks, what, waits);
}

Usage count(const Schedule& s) {
  Usage usage{std::vector<int>(s.pp, 0)};
  std::vector<int> live(s.pp, 0);
  for_all_parts(s, [&](int rank, int, const Action& a) {
    live[rank] += (a.kind == Kind::F) - (a.kind == Kind::W || a.kind == Kind::B);
    usage.peak_activations[rank] = std::max(usage.peak_activations[rank], live[rank]);
  });
  return usage;
}

}  // namespace

Usage check(const Schedule& s) {
  check_count(s);
  check_set(s);
  refuse_stuck(s, run_list(s, [](int, int) {}), "no rank can go on");
  const Schedule with_comms = add_comms(s);
  refuse_stuck(with_comms, run_comms(with_comms), "the messages block each other");
  return count(s);
}

}  // namespace duet
