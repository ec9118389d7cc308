// NCCL for ranks that are threads of one process, each with an emulated GPU of its own.
//
// Like the real one, with communicators that do not block, it matches the sends and receives
// between two ranks of a communicator by their order, does a communicator's operations one after
// the other, holds a stream until the other sides are there, says "in progress" for a while, and
// reports failures late. Unlike it, it notices misuse: sides of unequal size, messages without
// another side at the end, calls while the communicator is not ready or of one that is no more,
// memory that the GPU does not reach, two ranks on a GPU. An operation that waits occupies its GPU,
// so operations of several communicators may be under way in different orders on two ranks only if
// all of them fit on the GPU at once: where they do not, a complaint says so.
#include "test/emulated/nccl.h"

#include <unistd.h>

#include <algorithm>
#include <list>

#include "test/emulated/machine.h"

using namespace emulated;

namespace {

constexpr int kProcessors = 132;  // of an H100

// The n-th message between two ranks of a communicator in one direction.
struct Message {
  const char* from = nullptr;
  char* to = nullptr;
  size_t sent = 0, wanted = 0;
  Queue sender, receiver;                   // null: not called yet
  bool sending = false, receiving = false;  // that side is its stream's first, and waits
  enum { waiting, moving, moved, dead } state = waiting;
};

struct Channel {
  std::vector<std::shared_ptr<Message>> messages;
  size_t sends = 0, receives = 0;
};

// The communicators of one id.
struct Clique {
  int joined = 0, finalized = 0;
  std::vector<int> devices;
  std::map<std::pair<int, int>, Channel> channels;  // by source and target
};

struct Operation {
  struct Side {
    bool send;
    std::shared_ptr<Message> message;
  };
  std::vector<Side> sides;
  Queue stream;
};

}  // namespace

struct ncclComm {
  int rank, size, device, blocks;
  std::shared_ptr<Clique> clique;
  int under_way = 0;    // operations
  int in_progress = 0;  // says so this often
  bool aborted = false, finalizing = false;
  ncclResult_t error = ncclSuccess;
  std::list<Operation> called = {};  // groups that have ended, not on the GPU yet
};

namespace {

struct Post {
  bool send;
  char* data;
  size_t bytes;
  int peer;
  ncclComm_t comm;
  cudaStream_t stream;
};

// What a process has of NCCL; guarded by the machine's lock.
struct Library {
  std::map<std::string, std::shared_ptr<Clique>> cliques;  // not complete
  std::map<ncclComm_t, std::shared_ptr<ncclComm>> living;
  uint64_t ids = 0;
  bool break_next = false;
};
Library& library() {
  static Library all;
  return all;
}
thread_local std::vector<Post> group;
thread_local int group_depth = 0;

std::shared_ptr<ncclComm> hold(Call& c, ncclComm_t comm, const char* what) {
  const auto found = library().living.find(comm);
  if (found != library().living.end()) return found->second;
  c.machine.complain(text("NCCL: ", what, " of a communicator that is no more"));
  return nullptr;
}

// --- an operation on the GPU ---------------------------------------------------------------------

bool ready(const ncclComm& comm, const Operation& op, std::vector<Queue>& needs) {
  if (comm.aborted) return true;
  bool all = true;
  for (const auto& [send, m] : op.sides) (send ? m->sending : m->receiving) = true;
  for (const auto& [send, m] : op.sides) {
    const bool there = send ? m->receiving : m->sending;
    const Queue& other = send ? m->receiver : m->sender;
    if (!there && other) needs.push_back(other);
    all &= there && m->state != Message::dead;
  }
  return all;
}

void perform(const std::shared_ptr<ncclComm>& comm, const Operation& op) {
  Machine& machine = Machine::get();
  std::vector<Message*> mine;
  Lock lock(machine.mutex);
  for (const auto& [send, m] : op.sides) {
    if (m->state != Message::waiting) continue;
    m->state = comm->aborted ? Message::dead : Message::moving;
    if (!comm->aborted) mine.push_back(m.get());
  }
  lock.unlock();
  for (Message* m : mine) memcpy(m->to, m->from, std::min(m->sent, m->wanted));
  lock.lock();
  for (Message* m : mine) m->state = Message::moved;
  machine.changed.notify_all();
  for (const auto& [send, m] : op.sides)
    machine.changed.wait(lock, [&] { return m->state != Message::moving; });
  comm->under_way--;
  op.stream->messages -= comm->blocks;
}

void enqueue(Call& c, const std::shared_ptr<ncclComm>& comm, const Operation& op) {
  c.machine.counts.launches++;
  c.machine.counts.messages++;
  op.stream->messages += comm->blocks;
  int blocks = 0;
  for (const auto& [p, q] : c.machine.streams)
    if (q->device == comm->device) blocks += std::min(q->messages, comm->blocks);
  if (blocks > kProcessors)
    c.machine.complain(text("NCCL: ", blocks, " blocks of operations under way at once, a GPU has ",
        kProcessors, " processors: in another order on another rank they would wait for ever"));
  c.machine.enqueue(c.lock, op.stream,
      {.work = [comm, op] { perform(comm, op); },
          .ready = [comm, op](std::vector<Queue>& needs) { return ready(*comm, op, needs); }});
}

// --- calls ---------------------------------------------------------------------------------------

// One side of a message: the n-th of its channel.
std::shared_ptr<Message> side(Call& c, ncclComm& comm, const Post& call, const Queue& q) {
  const auto key = call.send ? std::pair(comm.rank, call.peer) : std::pair(call.peer, comm.rank);
  Channel& channel = comm.clique->channels[key];
  const size_t n = call.send ? channel.sends++ : channel.receives++;
  while (channel.messages.size() <= n) channel.messages.push_back(std::make_shared<Message>());
  const auto m = channel.messages[n];
  (call.send ? m->sender : m->receiver) = q;
  (call.send ? m->sent : m->wanted) = call.bytes;
  if (call.send) m->from = call.data;
  if (!call.send) m->to = call.data;
  if (m->sender && m->receiver && m->sent != m->wanted) {
    c.machine.complain(text("NCCL: a send of ", m->sent, " bytes met a receive of ", m->wanted));
    comm.error = ncclInvalidUsage;
  }
  return m;
}

ncclResult_t take(Call& c, ncclComm_t raw, const std::vector<Post>& calls) {
  const auto comm = hold(c, raw, "an operation");
  if (!comm || comm->aborted) return ncclInvalidUsage;
  Operation op;
  op.stream = c.machine.find(calls[0].stream);
  const auto blame = [&](bool wrong, const char* why) {
    if (wrong) c.machine.complain(text("NCCL: ", why)), comm->error = ncclInvalidUsage;
  };
  blame(comm->clique->joined < comm->size || comm->in_progress > 0 || comm->finalizing,
      "an operation of a communicator that is still in progress, or finalized");
  blame(op.stream->device != comm->device, "a stream of another GPU");
  for (const Post& call : calls) {
    blame(call.stream != calls[0].stream, "a group with two streams for a communicator");
    blame(call.peer < 0 || call.peer >= comm->size || call.peer == comm->rank, "no such peer");
    const Allocation* memory = c.machine.find(call.data, call.bytes);
    blame(!memory || (memory->device >= 0 && memory->device != comm->device),
        "memory that its GPU does not reach");
  }
  if (std::exchange(library().break_next, false)) comm->error = ncclInternalError;
  if (comm->error != ncclSuccess) return ncclInProgress;  // said later
  for (const Post& call : calls) op.sides.push_back({call.send, side(c, *comm, call, op.stream)});
  comm->called.push_back(op);
  comm->under_way++;
  comm->in_progress = 2;
  return ncclInProgress;
}

ncclResult_t call(
    bool send, const void* data, size_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
  ncclGroupStart();
  group.push_back({send, static_cast<char*>(const_cast<void*>(data)), bytes, peer, comm, stream});
  return ncclGroupEnd();
}

ncclResult_t forget(ncclComm_t raw, bool abort) {
  Call c;
  const auto comm = hold(c, raw, abort ? "abort" : "destroy");
  if (!comm) return ncclInvalidArgument;
  if (!abort && comm->clique->finalized < comm->size)
    c.machine.complain("NCCL: a communicator destroyed before all ranks had finalized it");
  comm->aborted = abort;
  library().living.erase(raw);
  c.machine.changed.notify_all();
  return ncclSuccess;
}

}  // namespace

namespace emulated {
int operations_under_way(int device) {
  int n = 0;
  for (const auto& [raw, comm] : library().living)
    if (comm->device == device) n += comm->under_way;
  return n;
}
int live_communicators() {
  const Call c;
  return int(library().living.size());
}
void break_next_operation() {
  const Call c;
  library().break_next = true;
}
}  // namespace emulated

const char* ncclGetErrorString(ncclResult_t code) {
  return code == ncclInternalError ? "internal error"
      : code == ncclInvalidUsage   ? "invalid usage"
      : code == ncclSystemError    ? "unhandled system error"
                                   : "another error";
}

// The emulation reaches one process, whose number is in the id.
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const Call c;
  snprintf(id->internal, sizeof id->internal, "%d/%llu", int(getpid()),
      static_cast<unsigned long long>(++library().ids));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(
    ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  Call c;
  if (atoi(id.internal) != getpid()) return ncclSystemError;
  if (config->blocking) c.machine.complain("NCCL: a communicator that blocks is not emulated");
  auto& clique = library().cliques[id.internal];
  if (!clique) clique = std::make_shared<Clique>();
  std::vector<int>& devices = clique->devices;
  if (std::count(devices.begin(), devices.end(), current_device)) {
    c.machine.complain("NCCL: two ranks of a communicator on one GPU");
    return ncclInvalidUsage;
  }
  devices.push_back(current_device);
  const auto made = std::make_shared<ncclComm>(
      ncclComm{rank, ranks, current_device, config->maxCTAs, clique, 0, 1});
  library().living[made.get()] = made;
  *comm = made.get();
  if (++made->clique->joined == ranks) library().cliques.erase(id.internal);
  return ncclInProgress;
}

// What was called reaches the GPU only when somebody has asked whether it has.
ncclResult_t ncclCommGetAsyncError(ncclComm_t raw, ncclResult_t* state) {
  Call c;
  const auto comm = hold(c, raw, "a question");
  if (!comm) return ncclInvalidArgument;
  const Clique& clique = *comm->clique;
  *state = comm->error;
  if (comm->error != ncclSuccess) return ncclSuccess;
  *state = ncclInProgress;
  if (clique.joined < comm->size) return ncclSuccess;
  if (comm->finalizing && clique.finalized < comm->size) return ncclSuccess;
  if (comm->in_progress > 0 && --comm->in_progress > 0) return ncclSuccess;
  for (const Operation& op : std::exchange(comm->called, {})) enqueue(c, comm, op);
  *state = ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, size_t bytes, ncclDataType_t, int peer, ncclComm_t comm,
    cudaStream_t stream) {
  return call(true, data, bytes, peer, comm, stream);
}
ncclResult_t ncclRecv(
    void* data, size_t bytes, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
  return call(false, data, bytes, peer, comm, stream);
}

ncclResult_t ncclGroupStart() {
  group_depth++;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) {
    Call().machine.complain("NCCL: the end of a group that was not begun");
    return ncclInvalidUsage;
  }
  if (--group_depth > 0) return ncclInProgress;
  std::map<ncclComm_t, std::vector<Post>> calls;
  for (const Post& one : std::exchange(group, {})) calls[one.comm].push_back(one);
  Call c;
  ncclResult_t code = ncclSuccess;
  for (const auto& [comm, of_comm] : calls) code = take(c, comm, of_comm);
  return code;
}

ncclResult_t ncclCommFinalize(ncclComm_t raw) {
  Call c;
  const auto comm = hold(c, raw, "finalize");
  if (!comm) return ncclInvalidArgument;
  comm->finalizing = true;
  comm->clique->finalized++;
  if (comm->under_way > 0) c.machine.complain("NCCL: finalized with operations under way");
  if (comm->clique->finalized == comm->size)
    for (const auto& [ranks, channel] : comm->clique->channels)
      if (channel.sends != channel.receives)
        c.machine.complain(text("NCCL: ", channel.sends, " sends met ", channel.receives,
            " receives from rank ", ranks.first, " to ", ranks.second));
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return forget(comm, false); }
ncclResult_t ncclCommAbort(ncclComm_t comm) { return forget(comm, true); }
