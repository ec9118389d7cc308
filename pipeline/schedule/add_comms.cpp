// See add_comms.h. Inserting messages, and the rendezvous machine that runs them.
#include "pipeline/schedule/add_comms.h"

namespace duet {
namespace {

// The message that the part sends, as its RECV; stage -1: none.
Action message_of(const Schedule& s, const Action& part) {
  const int m = part.microbatch;
  Action recv{Kind::RECV_F, -1, m};
  if (part.kind == Kind::F && part.stage != s.last_stage(m)) recv.stage = part.stage + 1;
  if (part.kind == Kind::I || part.kind == Kind::B) recv.kind = Kind::RECV_B;
  if (recv.kind == Kind::RECV_B && part.stage != s.first_stage(m)) recv.stage = part.stage - 1;
  if (recv.stage >= 0 && s.rank_of[recv.stage] == s.rank_of[part.stage]) recv.stage = -1;
  return recv;
}

// Calls recv(Action) for each message the part waits for, as its RECV.
template <class Recv> void for_messages_needed(const Schedule& s, const Action& part, Recv recv) {
  for_needs(s, part, [&](Kind kind, int stage, int m) {
    if (s.rank_of[stage] != s.rank_of[part.stage])
      recv(Action{kind == Kind::F ? Kind::RECV_F : Kind::RECV_B, part.stage, m});
  });
}

bool is_forward(Kind kind) { return kind == Kind::SEND_F || kind == Kind::RECV_F; }
bool is_send(Kind kind) { return kind == Kind::SEND_F || kind == Kind::SEND_B; }
int other_stage(const Action& comm) {
  return comm.stage + (is_forward(comm.kind) == is_send(comm.kind) ? 1 : -1);
}

// Numbers messages by their receiver's stage: 0 .. 2 S M - 1.
size_t message_id(const Schedule& s, const Action& comm) {
  const int receiver = is_send(comm.kind) ? other_stage(comm) : comm.stage;
  return product(s, is_forward(comm.kind) ? Kind::F : Kind::I, receiver, comm.microbatch);
}

// Queues of messages. A message is transferred when it is at the head of its sender's queue and of
// its receiver's.
class Rendezvous {
 public:
  struct Half {
    size_t message, other_queue;  // where the other half is posted
    int index;                    // in the rank's list
  };
  Rendezvous(size_t messages, size_t queues) : transferred_(messages, false), queues_(queues) {}

  bool transferred(size_t message) const { return transferred_[message]; }

  void post(size_t queue, const Half& half) {
    queues_[queue].posted.push_back(half);
    for (std::vector<size_t> heads = {queue}; !heads.empty();) {  // queues that may have a new head
      const size_t mine = heads.back();
      heads.pop_back();
      const Half* head = head_of(mine);
      const Half* other = head ? head_of(head->other_queue) : nullptr;
      if (!other || other->message != head->message) continue;
      transferred_[head->message] = true;
      for (const size_t moved : {head->other_queue, mine}) {
        ++queues_[moved].done;
        heads.push_back(moved);
      }
    }
  }

  const Half* head_of(size_t queue) const {  // null: nothing is left
    const Queue& q = queues_[queue];
    return q.done < q.posted.size() ? &q.posted[q.done] : nullptr;
  }

 private:
  struct Queue {
    std::vector<Half> posted;
    size_t done = 0;
  };
  std::vector<bool> transferred_;
  std::vector<Queue> queues_;
};

}  // namespace

int peer_rank(const Schedule& s, const Action& comm) { return s.rank_of[other_stage(comm)]; }

Schedule add_comms(const Schedule& s) {
  // What each channel carries, in the order its sender makes it.
  std::vector<std::vector<Action>> channel(size_t(s.pp) * s.pp);  // [from * pp + to], as RECVs
  // [messages]: place in its channel
  std::vector<int> place(size_t(2) * s.stages() * s.microbatches, 0);
  for (int rank = 0; rank < s.pp; ++rank) {
    for (const Action& action : s.ranks[rank]) {
      for_parts(action, [&](const Action& part) {
        const Action recv = message_of(s, part);
        if (recv.stage < 0) return;
        auto& carried = channel[size_t(rank) * s.pp + s.rank_of[recv.stage]];
        place[message_id(s, recv)] = int(carried.size());
        carried.push_back(recv);
      });
    }
  }

  Schedule with = s;
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
        const Action recv = message_of(s, part);
        if (recv.stage < 0) return;
        list.push_back(
            {part.kind == Kind::F ? Kind::SEND_F : Kind::SEND_B, part.stage, part.microbatch});
      });
    }
  }
  return with;
}

std::vector<Stuck> run_comms(const Schedule& s, Queues queues) {
  const size_t pp = s.pp;
  // per_edge: queue (rank, peer, out or in); per_rank: all of these are one.
  const auto queue_of = [&](size_t rank, size_t peer, bool out) {
    return queues == Queues::per_rank ? rank * pp * 2 : (rank * pp + peer) * 2 + out;
  };
  Rendezvous rendezvous(size_t(2) * s.stages() * s.microbatches, pp * pp * 2);
  std::vector<Stuck> stuck = sweep(s, [&](int rank, int index) {
    const Action& action = s.ranks[rank][index];
    std::optional<Action> missing;
    if (action.is_comm()) {
      DUET_CHECK(s.rank_of[action.stage] == rank, to_string(action), " stands on rank ", rank);
      const int peer = peer_rank(s, action);
      const bool out = is_send(action.kind);
      rendezvous.post(
          queue_of(rank, peer, out), {message_id(s, action), queue_of(peer, rank, !out), index});
      return missing;
    }
    for_parts(action, [&](const Action& part) {
      for_messages_needed(s, part, [&](const Action& recv) {
        if (!missing && !rendezvous.transferred(message_id(s, recv))) missing = recv;
      });
    });
    return missing;
  });
  for (size_t queue = 0; stuck.empty() && queue < pp * pp * 2; ++queue) {
    const int rank = int(queue / (2 * pp));
    if (const auto* left = rendezvous.head_of(queue))
      stuck.push_back({rank, left->index, s.ranks[rank][left->index]});
  }
  return stuck;
}

}  // namespace duet
