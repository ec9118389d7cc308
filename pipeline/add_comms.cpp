// Inserting messages, and the rendezvous machine that runs them. Read next: checker.cpp.
#include "pipeline/add_comms.h"

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
template <class Recv>
void for_messages_needed(const Schedule& s, const Action& part, Recv recv) {
  for_needs(s, part, [&](Kind kind, int stage, int m) {
    if (s.rank_of[stage] != s.rank_of[part.stage]) recv(Action{kind == Kind::F ? Kind::RECV_F : Kind::RECV_B, part.stage, m});
  });
}

bool is_forward(Kind kind) { return kind == Kind::SEND_F || kind == Kind::RECV_F; }
bool is_send(Kind kind) { return kind == Kind::SEND_F || kind == Kind::SEND_B; }
int other_stage(const Action& comm) { return comm.stage + (is_forward(comm.kind) == is_send(comm.kind) ? 1 : -1); }

// Numbers messages by their receiver's stage: 0 .. 2 S M - 1.
size_t message_id(const Schedule& s, const Action& comm) {
  const int receiver = is_send(comm.kind) ? other_stage(comm) : comm.stage;
  return product(s, is_forward(comm.kind) ? Kind::F : Kind::I, receiver, comm.microbatch);
}

// Queues of messages, each of which needs `members` queues. Ranks that wait are handed back as they may go on.
class Rendezvous {
 public:
  Rendezvous(size_t messages, size_t queues) : messages_(messages), queues_(queues) {}

  bool transferred(size_t message) const { return messages_[message].transferred; }
  void wait(size_t message, int rank) { messages_[message].waiting_rank = rank; }

  // Posts a message of `members` members to one of their queues; `index` of the rank's list is kept for what is left over.
  void post(size_t queue, size_t message, int members, int index, std::vector<int>& runnable) {
    messages_[message].members = members;
    queues_[queue].posted.push_back({message, index});
    if (queues_[queue].posted.size() == queues_[queue].done + 1) reaches_head(queue, runnable);
  }

  // The index at which the oldest message left in the queue was posted; -1: none is left.
  int left_over(size_t queue) const {
    const Queue& q = queues_[queue];
    return q.done < q.posted.size() ? q.posted[q.done].index : -1;
  }

 private:
  static constexpr size_t kNone = size_t(-1);
  struct Message {
    int members = 0, at_head = 0;
    size_t head_queue = kNone;  // a chain of the queues it is at the head of
    int waiting_rank = -1;
    bool transferred = false;
  };
  struct Post {
    size_t message;
    int index;
  };
  struct Queue {
    std::vector<Post> posted;
    size_t done = 0;
    size_t next = kNone;  // in the chain of its head's message
  };

  void reaches_head(size_t first_queue, std::vector<int>& runnable) {
    std::vector<size_t> heads = {first_queue};  // queues that have a new head
    while (!heads.empty()) {
      const size_t queue = heads.back();
      heads.pop_back();
      Queue& q = queues_[queue];
      if (q.done == q.posted.size()) continue;
      Message& message = messages_[q.posted[q.done].message];
      q.next = message.head_queue;
      message.head_queue = queue;
      if (message.transferred || ++message.at_head < message.members) continue;
      message.transferred = true;
      if (message.waiting_rank >= 0) runnable.push_back(message.waiting_rank);
      for (size_t member = message.head_queue; member != kNone; member = queues_[member].next) {
        ++queues_[member].done;
        heads.push_back(member);
      }
    }
  }

  std::vector<Message> messages_;
  std::vector<Queue> queues_;
};

}  // namespace

int peer_rank(const Schedule& s, const Action& comm) { return s.rank_of[other_stage(comm)]; }

Schedule add_comms(const Schedule& s) {
  // What each channel carries, in the order its sender makes it.
  std::vector<std::vector<Action>> channel(size_t(s.pp) * s.pp);  // [from * pp + to], as RECVs
  std::vector<int> place(size_t(2) * s.stages() * s.microbatches, 0);  // [messages]: place in its channel
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
          while (received[from] <= place[message_id(s, recv)]) list.push_back(channel[from][received[from]++]);
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
        list.push_back({part.kind == Kind::F ? Kind::SEND_F : Kind::SEND_B, part.stage, part.microbatch});
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
  std::vector<int> position(pp, 0);
  std::vector<Action> missing(pp);

  const auto may_run = [&](int rank, const Action& action) {
    bool all = true;
    for_parts(action, [&](const Action& part) {
      for_messages_needed(s, part, [&](const Action& recv) {
        if (!all || rendezvous.transferred(message_id(s, recv))) return;
        all = false;
        missing[rank] = recv;
        rendezvous.wait(message_id(s, recv), rank);
      });
    });
    return all;
  };

  std::vector<int> runnable;
  for (int rank = s.pp - 1; rank >= 0; --rank) runnable.push_back(rank);
  while (!runnable.empty()) {
    const int rank = runnable.back();
    runnable.pop_back();
    for (int& i = position[rank]; i < int(s.ranks[rank].size()); ++i) {
      const Action& action = s.ranks[rank][i];
      if (action.is_comm()) {
        DUET_CHECK(s.rank_of[action.stage] == rank, to_string(action), " stands on rank ", rank);
        const size_t queue = queue_of(rank, peer_rank(s, action), is_send(action.kind));
        rendezvous.post(queue, message_id(s, action), 2, i, runnable);
      } else if (!may_run(rank, action)) {
        break;
      }
    }
  }

  std::vector<Stuck> stuck;
  for (int rank = 0; rank < s.pp; ++rank) {
    if (position[rank] < int(s.ranks[rank].size())) stuck.push_back({rank, position[rank], missing[rank]});
  }
  for (size_t queue = 0; stuck.empty() && queue < pp * pp * 2; ++queue) {
    const int rank = int(queue / (2 * pp)), index = rendezvous.left_over(queue);
    if (index >= 0) stuck.push_back({rank, index, s.ranks[rank][index]});
  }
  return stuck;
}

}  // namespace duet
