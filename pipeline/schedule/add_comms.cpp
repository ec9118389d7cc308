// See add_comms.h. Inserting messages, and running them.
#include "pipeline/schedule/add_comms.h"

#include <algorithm>

namespace duet {
namespace {

// The message that the part sends, as its RECV, if it sends one.
std::optional<Action> message_of(const Schedule& s, const Action& part) {
  const bool forward = part.kind == Kind::F;
  const int to = forward ? part.stage + 1 : part.stage - 1;
  if (part.kind == Kind::W || !s.visits(to, part.microbatch)) return std::nullopt;
  if (s.rank_of[to] == s.rank_of[part.stage]) return std::nullopt;
  return Action{forward ? Kind::RECV_F : Kind::RECV_B, to, part.microbatch};
}

// Calls recv(Action) for each message the part waits for, as its RECV.
template <class Recv> void for_messages_needed(const Schedule& s, const Action& part, Recv recv) {
  for_needs(s, part, [&](Kind kind, int stage, int m) {
    if (s.rank_of[stage] != s.rank_of[part.stage])
      recv(Action{kind == Kind::F ? Kind::RECV_F : Kind::RECV_B, part.stage, m});
  });
}

// Numbers messages by their receiver's stage: 0 .. 2 S M - 1.
size_t message_id(const Schedule& s, const Action& comm) {
  const int receiver = is_send(comm.kind) ? other_stage(comm) : comm.stage;
  return result_id(s, is_forward_message(comm.kind) ? Kind::F : Kind::I, receiver, comm.microbatch);
}

}  // namespace

int peer_rank(const Schedule& s, const Action& comm) { return s.rank_of[other_stage(comm)]; }

Schedule add_comms(const Schedule& s) {
  // What each channel carries, in the order its sender makes it.
  std::vector<std::vector<Action>> channel(size_t(s.pp) * s.pp);  // [from * pp + to], as RECVs
  // [messages]: place in its channel
  std::vector<int> place(size_t(2) * s.stages() * s.microbatches, 0);
  for_all_parts(s, [&](int rank, int, const Action& part) {
    const std::optional<Action> recv = message_of(s, part);
    if (!recv) return;
    auto& carried = channel[size_t(rank) * s.pp + s.rank_of[recv->stage]];
    place[message_id(s, *recv)] = int(carried.size());
    carried.push_back(*recv);
  });

  Schedule with = s;
  with.cells.clear();  // messages have none
  std::vector<int> received(channel.size(), 0);
  for (int rank = 0; rank < s.pp; ++rank) {
    auto& list = with.ranks[rank];
    list.clear();
    const auto& actions = s.ranks[rank];
    // Posts what actions[i] needs, with all that comes before it in its channel.
    const auto receive_for = [&](size_t i) {
      if (i >= actions.size()) return;
      for_parts(actions[i], [&](const Action& part) {
        for_messages_needed(s, part, [&](const Action& recv) {
          const size_t from = size_t(peer_rank(s, recv)) * s.pp + rank;
          while (received[from] <= place[message_id(s, recv)])
            list.push_back(channel[from][received[from]++]);
        });
      });
    };
    receive_for(0);
    for (size_t i = 0; i < actions.size(); ++i) {
      receive_for(i + 1);
      list.push_back(actions[i]);
      for_parts(actions[i], [&](const Action& part) {
        const Kind send = part.kind == Kind::F ? Kind::SEND_F : Kind::SEND_B;
        if (message_of(s, part)) list.push_back({send, part.stage, part.microbatch});
      });
    }
  }
  return with;
}

std::vector<Stuck> run_comms(const Schedule& s) {
  struct Posted {
    size_t message;
    int index;  // in the rank's list
  };
  struct Channel {
    std::vector<Posted> ends[2];  // the receiver's, the sender's
    size_t transferred = 0;
  };
  const size_t pp = s.pp;
  std::vector<Channel> channels(pp * pp);  // [from * pp + to]
  std::vector<bool> received(size_t(2) * s.stages() * s.microbatches, false);
  const auto post = [&](size_t rank, const Action& comm, int index) {
    const size_t peer = peer_rank(s, comm);
    const bool out = is_send(comm.kind);
    auto& [ends, n] = channels[out ? rank * pp + peer : peer * pp + rank];
    ends[out].push_back({message_id(s, comm), index});
    const auto& [in, sent] = ends;
    for (; n < std::min(in.size(), sent.size()) && in[n].message == sent[n].message; ++n)
      received[in[n].message] = true;
  };
  std::vector<Stuck> stuck = sweep(s, [&](int rank, int index) {
    const Action& action = s.ranks[rank][index];
    std::optional<Action> missing;
    if (action.is_comm()) {
      DUET_CHECK(s.rank_of[action.stage] == rank, to_string(action), " stands on rank ", rank);
      post(rank, action, index);
      return missing;
    }
    for_parts(action, [&](const Action& part) {
      for_messages_needed(s, part, [&](const Action& recv) {
        if (!missing && !received[message_id(s, recv)]) missing = recv;
      });
    });
    return missing;
  });
  if (!stuck.empty()) return stuck;
  for (size_t c = 0; c < channels.size(); ++c)
    for (const bool out : {false, true})
      if (const auto& [ends, n] = channels[c]; ends[out].size() > n) {
        const int rank = int(out ? c / pp : c % pp), index = ends[out][n].index;
        stuck.push_back({rank, index, s.ranks[rank][index]});
      }
  return stuck;
}

}  // namespace duet
