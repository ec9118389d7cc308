// The checker against a slow one that knows nothing of its methods; the messages; what is counted.
#include "pipeline/schedule/checker.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <sstream>
#include <tuple>

#include "pipeline/schedule/add_comms.h"
#include "test/random_schedule.h"

namespace duet {
namespace {

// Sets and sweeps: everything exactly once on its rank, then whoever can go on does, until nobody
// can.
bool is_right(const Schedule& s) {
  std::multiset<Thing> seen;
  const int stages = int(s.rank_of.size());
  for (int rank = 0; rank < s.pp; ++rank) {
    for (const Action& action : s.ranks[rank]) {
      std::vector<Action> parts = {{action.kind, action.stage, action.microbatch}};
      if (action.b_stage >= 0) parts.push_back({Kind::B, action.b_stage, action.b_microbatch});
      for (const Action& a : parts) {
        if (a.stage < 0 || a.stage >= stages || s.rank_of[a.stage] != rank) return false;
        seen.insert({a.kind, a.stage, a.microbatch});
      }
    }
  }
  size_t expected = 0;
  for (int stage = 0; stage < stages; ++stage) {
    for (int m = 0; m < s.microbatches; ++m) {
      if (s.two_directions && (stage >= stages / 2) != (m >= s.microbatches / 2)) continue;
      const auto times = [&](Kind kind) { return seen.count({kind, stage, m}); };
      const bool whole = times(Kind::B) == 1 && times(Kind::I) == 0 && times(Kind::W) == 0;
      const bool split = times(Kind::B) == 0 && times(Kind::I) == 1 && times(Kind::W) == 1;
      if (times(Kind::F) != 1 || (!whole && !split)) return false;
      expected += whole ? 2 : 3;
    }
  }
  if (expected != seen.size()) return false;
  std::set<Thing> done;
  std::vector<size_t> at(s.pp, 0);
  for (bool any = true; any;) {
    any = false;
    for (int rank = 0; rank < s.pp; ++rank) {
      if (at[rank] == s.ranks[rank].size()) continue;
      const Action action = s.ranks[rank][at[rank]];
      std::vector<Action> parts = {{action.kind, action.stage, action.microbatch}};
      if (action.b_stage >= 0) parts.push_back({Kind::B, action.b_stage, action.b_microbatch});
      bool ready = true;
      for (const Action& a : parts) {
        for (const Thing& need : needs_of(s, a)) ready &= done.contains(need);
      }
      if (!ready) continue;
      for (const Action& a : parts)
        done.insert({a.kind == Kind::B ? Kind::I : a.kind, a.stage, a.microbatch});
      ++at[rank];
      any = true;
    }
  }
  for (int rank = 0; rank < s.pp; ++rank) {
    if (at[rank] < s.ranks[rank].size()) return false;
  }
  return true;
}

std::string refusal(const Schedule& s) {
  try {
    check(s);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

Schedule from_text(const std::string& text) { return read_csv(text, "file.csv"); }

// Every generator at every size it exists for.
template <class Fn> void for_all_published(Fn fn) {
  for (const ScheduleKind& kind : schedule_kinds()) {
    for (const int pp : {1, 2, 3, 4, 5, 6, 8}) {
      for (const int M : {1, 2, 3, 5, 8, 10, 13, 16, 20, 29}) {
        const int v = 2 + (pp + M) % 3;
        const bool dualpipe = kind.name == std::string("dualpipe"),
                   dualpipev = kind.name == std::string("dualpipev");
        if (dualpipe && (pp % 2 || M % 2)) continue;
        if ((dualpipe || dualpipev) && M < 2 * pp) continue;
        SCOPED_TRACE(cat(kind.name, " pp ", pp, " M ", M, " v ", v));
        fn(kind.make({pp, M, v}));
      }
    }
  }
}

TEST(Checker, PublishedSchedulesAreRight) {
  for_all_published([](const Schedule& s) {
    EXPECT_TRUE(is_right(s));
    ASSERT_EQ(refusal(s), "");
  });
}

TEST(Checker, PeakActivations) {
  for_all_sizes([](int P, int M) {
    const int v = 2 + M % 3, G = M < P ? P : (M + M / P - 1) / (M / P);
    const auto expect = [&](const char* name, int most, const auto& at_rank) {
      const std::vector<int> peaks = check(make_schedule(name, {P, M, v})).peak_activations;
      for (int r = 0; r < P; ++r)
        EXPECT_EQ(peaks[r], std::min(most, at_rank(r))) << name << " rank " << r;
    };
    expect("gpipe", M, [&](int) { return M; });
    expect("1f1b", M, [&](int r) { return P - r; });
    expect("zb1p", M, [&](int) { return P; });
    expect("zb-h2", M, [&](int) { return 2 * P - 1; });
    expect("interleaved", v * M, [&](int r) { return (v - 1) * G + 2 * (P - 1 - r) + 1; });
    expect("zbv", 2 * M, [&](int r) { return std::min(2 * P, M + r + 1); });
    if (M < 2 * P) return;
    expect("dualpipev", 2 * M, [&](int) { return 2 * P + 1; });
    if (P % 2 == 0 && M % 2 == 0) expect("dualpipe", M, [&](int) { return P + 1; });
  });
}

TEST(Checker, RandomLegalSchedulesAreRight) {
  std::mt19937 rng(2);
  for (int i = 0; i < 400; ++i) {
    const Schedule s = random_schedule(random_shape(rng), rng);
    ASSERT_TRUE(is_right(s));
    ASSERT_EQ(refusal(s), "");
  }
}

const ScheduleKind& any_kind(std::mt19937& rng) {
  return schedule_kinds()[rng() % schedule_kinds().size()];
}

// One random wrong thing done to a schedule; 0 to 4 are always wrong, 5 may happen to be right.
void corrupt(Schedule& s, int how, std::mt19937& rng) {
  int rank = rng() % s.pp;
  while (s.ranks[rank].empty()) rank = rng() % s.pp;
  auto& row = s.ranks[rank];
  const size_t i = rng() % row.size(), j = rng() % row.size();
  const auto other = [&](int value, int count) {
    return (value + 1 + int(rng() % (count - 1))) % count;
  };
  switch (how) {
    case 0: row.erase(row.begin() + i); break;
    case 1: row.insert(row.begin() + j, row[i]); break;
    case 2:
      if (s.microbatches > 1)
        row[i].microbatch = other(row[i].microbatch, s.microbatches);
      else
        row[i].microbatch = 1;
      break;
    case 3:
      if (s.stages() > 1)
        row[i].stage = other(row[i].stage, s.stages());
      else
        row[i].stage = 1;
      break;
    case 4: {
      const Kind was = row[i].kind;
      while (row[i].kind == was) row[i].kind = Kind(rng() % 4);
      break;
    }
    default: std::swap(row[i], row[j]);
  }
}

TEST(Checker, RandomCorruptionsAreRefused) {
  std::mt19937 rng(3);
  int wrong_swaps = 0;
  for (int i = 0; i < 3000; ++i) {
    Schedule s = i % 2 ? random_schedule(random_shape(rng), rng)
                       : any_kind(rng).make({2 + 2 * int(rng() % 2), 8 + 2 * int(rng() % 3), 2});
    const int how = i % 6;
    corrupt(s, how, rng);
    const bool right = is_right(s);
    ASSERT_FALSE(how < 5 && right) << how;
    wrong_swaps += how == 5 && !right;
    const std::string error = refusal(s);
    ASSERT_EQ(error.empty(), right) << error;
    if (!right) {
      EXPECT_NE(error.find(">"), std::string::npos) << error;
      EXPECT_EQ(error.find("\n  rank "), error.find('\n'));
    }
  }
  EXPECT_GT(wrong_swaps, 100);
}

TEST(Checker, CorruptionsInAFileAreRefused) {
  std::mt19937 rng(4);
  for (int i = 0; i < 1000; ++i) {
    Schedule s = any_kind(rng).make({4, 8, 2});
    corrupt(s, i % 5, rng);
    std::ostringstream out;
    write_csv(out, s);
    EXPECT_THROW(check(from_text(out.str())), UsageError) << out.str();
  }
}

TEST(Checker, SaysWhatIsWrongAndMarksIt) {
  EXPECT_EQ(refusal(from_text("0F0,0F1,0B1,0B0\n1F0,1B0,1F1,1B1,1F0\n")),
      "schedule file.csv: 1F0 comes a second time, the first is line 2, cell 1\n"
      "  rank 0 (line 1):  0F0  0F1  0B1  0B0\n"
      "  rank 1 (line 2):  1F0  1B0  1F1  1B1 >1F0<");
  EXPECT_EQ(refusal(from_text("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n")),
      "schedule file.csv: no rank can go on; rank 0 at 0B0 (line 1, cell 2) waits for 1I0; "
      "rank 1 at 1F1 (line 2, cell 2) waits for 0F1\n"
      "  rank 0 (line 1):  0F0 >0B0<  0F1  0B1\n"
      "  rank 1 (line 2):  1F0 >1F1<  1B0  1B1");
  Schedule made = make_schedule("gpipe", {2, 2});  // in no file
  made.ranks[1].push_back(made.ranks[1][2]);
  EXPECT_TRUE(
      refusal(made).starts_with("schedule gpipe: 1B0 comes a second time, the first is "
                                "action 3 of rank 1\n  rank 0:  0F0"))
      << refusal(made);
  EXPECT_NE(
      refusal(from_text("0F0,0B0,0F1,0I1\n")).find("microbatch 1 lacks a W at stage 0 on rank 0"),
      std::string::npos);
  EXPECT_NE(
      refusal(from_text("0F0,0B0,0W0,0F1,0I1,0W1\n")).find("0W0 beside a B"), std::string::npos);
  EXPECT_NE(refusal(from_text("0F0,0B0\n1F0,1B0,0F1,0B1\n"))
                .find("0F1 is on rank 1, but stage 0 is on rank 0"),
      std::string::npos);
}

TEST(Checker, CountsActivationsUntilTheirW) {
  const auto peak = [](const char* text) { return check(from_text(text)).peak_activations; };
  EXPECT_EQ(peak("0F0,0F1,0F2,0F3,0B1,0B0,0I3,0W3,0B2\n"), std::vector<int>{4});
  EXPECT_EQ(peak("0F2,0F3,0F1,0B1,0F0,0B0,0B2,0B3\n"), std::vector<int>{3});
  EXPECT_EQ(peak("0F2,0F3,0I2,0F1,0I3,0W3,0W2,0F0,0B1,0B0\n"), std::vector<int>{3});
}

// --- messages ------------------------------------------------------------------------------------

std::string joined(const std::vector<Action>& row) {
  std::string text;
  for (const Action& a : row) text += (text.empty() ? "" : ",") + to_string(a);
  return text;
}

TEST(Comms, SmallCaseByHand) {
  const Schedule s = add_comms(make_schedule("1f1b", {2, 2}));
  EXPECT_EQ(joined(s.ranks[0]), "0F0,0SEND_F0,0RECV_B0,0F1,0SEND_F1,0RECV_B1,0B0,0B1");
  EXPECT_EQ(joined(s.ranks[1]), "1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1,1B1,1SEND_B1");
  EXPECT_EQ(peer_rank(s, {Kind::SEND_F, 0, 0}), 1);
  EXPECT_EQ(peer_rank(s, {Kind::RECV_B, 0, 0}), 1);
  EXPECT_EQ(peer_rank(s, {Kind::RECV_F, 1, 0}), 0);
  EXPECT_EQ(peer_rank(s, {Kind::SEND_B, 1, 0}), 0);
}

void expect_good_messages(const Schedule& compute) {
  const Schedule s = add_comms(compute);
  std::map<std::pair<int, int>, std::vector<Thing>> sent, received;  // by (from, to), in order
  for (int rank = 0; rank < s.pp; ++rank) {
    std::vector<Action> rest;
    std::set<Thing> here;  // F and I made or received on this rank
    for (const Action& a : s.ranks[rank]) {
      const bool forward = a.kind == Kind::SEND_F || a.kind == Kind::RECV_F;
      const Kind made = forward ? Kind::F : Kind::I;
      if (a.kind == Kind::SEND_F || a.kind == Kind::SEND_B) {
        EXPECT_TRUE(here.contains({made, a.stage, a.microbatch})) << "sent before it is made";
        sent[{rank, s.rank_of[a.stage + (forward ? 1 : -1)]}].push_back(
            {made, a.stage, a.microbatch});
      } else if (a.is_comm()) {
        const int from = a.stage + (forward ? -1 : 1);
        received[{s.rank_of[from], rank}].push_back({made, from, a.microbatch});
        here.insert({made, from, a.microbatch});
      } else {
        rest.push_back(a);
        for_parts(a, [&](const Action& part) {
          for (const Thing& need : needs_of(s, part))
            EXPECT_TRUE(here.contains(need)) << to_string(part);
        });
        for_parts(a, [&](const Action& part) {
          if (part.kind != Kind::W)
            here.insert({part.kind == Kind::F ? Kind::F : Kind::I, part.stage, part.microbatch});
        });
      }
    }
    EXPECT_EQ(rest, compute.ranks[rank]);
  }
  EXPECT_EQ(sent, received);
  for (const auto& [edge, things] : sent) EXPECT_NE(edge.first, edge.second);
  EXPECT_TRUE(run_comms(s).empty());
}

TEST(Comms, SendsAndReceivesMatchInOrder) {
  for_all_published(expect_good_messages);
  std::mt19937 rng(5);
  for (int i = 0; i < 200; ++i) expect_good_messages(random_schedule(random_shape(rng), rng));
}

// Messages run slowly: a queue for each rank, peer and direction, or one a rank; a message moves
// when both of its halves are first in their queues.
bool comes_to_its_end(const Schedule& s, bool one_queue_a_rank) {
  std::map<std::tuple<int, int, bool>, std::deque<Action>> queues;
  const auto queue = [&](int rank, int peer, bool out) -> std::deque<Action>& {
    return one_queue_a_rank ? queues[{rank, 0, false}] : queues[{rank, peer, out}];
  };
  std::vector<size_t> at(s.pp, 0);
  std::set<std::pair<int, Thing>> received;  // by rank
  const auto post = [&](int rank, const Action& a) {
    queue(rank, peer_rank(s, a), is_send(a.kind)).push_back(a);
    return true;
  };
  const auto can_run = [&](int rank, const Action& action) {
    bool can = true;
    for_parts(action, [&](const Action& part) {
      for (const Thing& need : needs_of(s, part))
        can &= s.rank_of[std::get<1>(need)] == rank || received.contains({rank, need});
    });
    return can;
  };
  for (bool any = true; any;) {
    any = false;
    for (int rank = 0; rank < s.pp; ++rank)
      for (; at[rank] < s.ranks[rank].size(); ++at[rank], any = true) {
        const Action& a = s.ranks[rank][at[rank]];
        if (!(a.is_comm() ? post(rank, a) : can_run(rank, a))) break;
      }
    for (int from = 0; from < s.pp; ++from)
      for (int to = 0; to < s.pp; ++to) {
        auto &out = queue(from, to, true), &in = queue(to, from, false);
        if (out.empty() || in.empty() || !is_send(out[0].kind) || is_send(in[0].kind)) continue;
        const bool same = is_forward_message(out[0].kind) == is_forward_message(in[0].kind) &&
            other_stage(out[0]) == in[0].stage && out[0].microbatch == in[0].microbatch;
        if (!same || s.rank_of[in[0].stage] != to || s.rank_of[out[0].stage] != from) continue;
        const Kind made = is_forward_message(out[0].kind) ? Kind::F : Kind::I;
        received.insert({to, {made, out[0].stage, out[0].microbatch}});
        out.pop_front(), in.pop_front();
        any = true;
      }
  }
  for (const auto& [key, left] : queues)
    if (!left.empty()) return false;
  for (int rank = 0; rank < s.pp; ++rank)
    if (at[rank] < s.ranks[rank].size()) return false;
  return true;
}

TEST(Comms, AMissingOrMisplacedMessageIsFound) {
  std::mt19937 rng(6);
  for (int i = 0; i < 500; ++i) {
    const Schedule s = add_comms(any_kind(rng).make({4, 8, 2}));
    Schedule dropped = s, doubled = s, swapped = s;
    const int rank = rng() % 4;
    std::vector<size_t> comms;
    for (size_t k = 0; k < s.ranks[rank].size(); ++k) {
      if (s.ranks[rank][k].is_comm()) comms.push_back(k);
    }
    const size_t k = comms[rng() % comms.size()];
    dropped.ranks[rank].erase(dropped.ranks[rank].begin() + k);
    EXPECT_FALSE(run_comms(dropped).empty());
    EXPECT_FALSE(comes_to_its_end(dropped, false));
    doubled.ranks[rank].insert(doubled.ranks[rank].begin() + k, s.ranks[rank][k]);
    EXPECT_FALSE(run_comms(doubled).empty());
    EXPECT_FALSE(comes_to_its_end(doubled, false));
    // Two messages of one queue in the wrong order: each side waits for what the other has behind
    // it.
    for (const size_t j : comms) {
      const Action a = s.ranks[rank][k], b = s.ranks[rank][j];
      const auto sends = [](const Action& x) {
        return x.kind == Kind::SEND_F || x.kind == Kind::SEND_B;
      };
      if (a == b || sends(a) != sends(b) || peer_rank(s, a) != peer_rank(s, b)) continue;
      std::swap(swapped.ranks[rank][k], swapped.ranks[rank][j]);
      EXPECT_FALSE(comes_to_its_end(swapped, false));
      EXPECT_FALSE(run_comms(swapped).empty()) << to_string(a) << " " << to_string(b);
      break;
    }
  }
}

// Why each edge has queues of its own: with a single communication stream a rank's receive, posted
// for later, stands before a send that the other side waits for.
TEST(Comms, OneStreamForAllMessagesDeadlocks) {
  for (const char* name : {"1f1b", "dualpipe", "dualpipev"}) {
    const Schedule s = add_comms(make_schedule(name, {4, 8}));
    EXPECT_TRUE(comes_to_its_end(s, false)) << name;
    EXPECT_FALSE(comes_to_its_end(s, true)) << name;
  }
}

}  // namespace
}  // namespace duet
