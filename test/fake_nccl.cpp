// See fake_nccl.h.
#include "test/fake_nccl.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>

struct ncclComm {
  int rank, size;
  std::shared_ptr<struct Clique> clique;
  int called = 0, ended = 0;  // operations; `ended` is guarded by the clique
  bool aborted = false, finalizing = false;
  int error = 0;
  int pretended = 0;  // answers "in progress" so often
};

// The communicators of one id.
struct Clique {
  struct Side {
    size_t bytes;
    const void* data;
    bool done;
  };
  struct Channel {  // between two ranks, one direction
    std::deque<std::shared_ptr<Side>> sent;
  };
  std::mutex mutex;
  std::condition_variable changed;
  int joined = 0, finalized = 0;
  std::map<std::pair<int, int>, Channel> channels;
};

namespace duet::fake_nccl {
namespace {

constexpr int kInternalError = 3, kInvalidUsage = 5;

// What a process has of NCCL: the stand-in's own state, as a library's would be.
struct Library {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Clique>> cliques;  // not yet complete
  std::vector<std::string> misuse;
  uint64_t ids = 0;
  std::atomic<int> gpus = 0, live = 0;
  std::atomic<bool> break_next = false;
};
Library& library() {
  static Library l;
  return l;
}

void blame(const std::string& text) {
  std::lock_guard lock(library().mutex);
  library().misuse.push_back(text);
}

struct Call {
  bool send;
  void* data;
  size_t bytes;
  int peer;
  ncclComm* comm;
  Stream* stream;
};
std::vector<Call>& group() {  // what this thread has called since group_start
  thread_local std::vector<Call> calls;
  return calls;
}

// On the stream's thread. All sides of the group go on together; a rank that aborts leaves at once.
void operate(const std::shared_ptr<ncclComm>& held, int number, const std::vector<Call>& calls) {
  ncclComm& comm = *held;
  Clique& c = *comm.clique;
  std::unique_lock lock(c.mutex);
  const auto wait = [&](auto ready) {
    c.changed.wait(lock, [&] { return comm.aborted || ready(); });
    return !comm.aborted;
  };
  if (!wait([&] { return comm.ended == number; })) return;
  std::vector<std::shared_ptr<Clique::Side>> mine;
  for (const Call& call : calls)
    if (call.send) {
      mine.push_back(std::make_shared<Clique::Side>(Clique::Side{call.bytes, call.data, false}));
      c.channels[{comm.rank, call.peer}].sent.push_back(mine.back());
    }
  c.changed.notify_all();
  for (const Call& call : calls) {
    if (call.send) continue;
    auto& sent = c.channels[{call.peer, comm.rank}].sent;
    if (!wait([&] { return !sent.empty(); })) return;
    const auto side = sent.front();
    sent.pop_front();
    if (side->bytes != call.bytes) {
      blame(cat("a send of ", side->bytes, " bytes met a receive of ", call.bytes));
      comm.error = kInvalidUsage;
    } else {
      memcpy(call.data, side->data, call.bytes);
    }
    side->done = true;
    c.changed.notify_all();
  }
  for (const auto& side : mine)
    if (!wait([&] { return side->done; })) return;
  comm.ended++;
  c.changed.notify_all();
}

// A communicator outlives its end while a stream still has its operations: held by this list, as
// the streams' are queued.
std::map<ncclComm*, std::shared_ptr<ncclComm>>& living() {
  static std::map<ncclComm*, std::shared_ptr<ncclComm>> all;  // guarded by the library's mutex
  return all;
}

std::shared_ptr<ncclComm> hold(ncclComm* comm, const char* call) {
  std::lock_guard lock(library().mutex);
  const auto found = living().find(comm);
  if (found != living().end()) return found->second;
  library().misuse.push_back(cat(call, " of a communicator that is no more"));
  return nullptr;
}

int own_gpu() {
  thread_local const int index = library().gpus++;
  return index;
}
int one_gpu() { return 0; }
void use_gpu(int) {}
std::string gpu_name(int index) { return cat("here, GPU ", index); }

int get_id(NcclId* id) {
  std::lock_guard lock(library().mutex);
  memset(id->bytes, 0, sizeof id->bytes);
  snprintf(id->bytes, sizeof id->bytes, "%llu", static_cast<unsigned long long>(++library().ids));
  return kNcclSuccess;
}

int init(ncclComm** comm, int ranks, const NcclId& id, int rank, int) {
  std::lock_guard lock(library().mutex);
  auto& clique = library().cliques[id.bytes];
  if (!clique) clique = std::make_shared<Clique>();
  const auto made =
      std::make_shared<ncclComm>(ncclComm{.rank = rank, .size = ranks, .clique = clique});
  living()[made.get()] = made;
  library().live++;
  *comm = made.get();
  std::lock_guard joining(made->clique->mutex);
  if (++made->clique->joined == ranks) library().cliques.erase(id.bytes);
  return kNcclInProgress;
}

int async_error(ncclComm* p) {
  const auto comm = hold(p, "async_error");
  if (!comm) return kInvalidUsage;
  std::lock_guard lock(comm->clique->mutex);
  if (comm->error) return comm->error;
  if (comm->clique->joined < comm->size) return kNcclInProgress;
  if (comm->finalizing && comm->clique->finalized < comm->size) return kNcclInProgress;
  if (comm->pretended > 0) return comm->pretended--, kNcclInProgress;
  return kNcclSuccess;
}

int call(bool send, void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
  group().push_back({send, data, bytes, peer, comm, static_cast<Stream*>(stream)});
  return kNcclInProgress;
}
int send(const void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
  return call(true, const_cast<void*>(data), bytes, peer, comm, stream);
}
int recv(void* data, size_t bytes, int peer, ncclComm* comm, void* stream) {
  return call(false, data, bytes, peer, comm, stream);
}

int group_start() { return group().clear(), kNcclSuccess; }

int group_end() {  // duet's groups have one communicator and one stream
  const std::vector<Call> calls = std::exchange(group(), {});
  if (calls.empty()) return kNcclSuccess;
  const auto comm = hold(calls[0].comm, "an operation");
  if (!comm) return kInvalidUsage;
  for (const Call& c : calls)
    if (c.comm != calls[0].comm || c.stream != calls[0].stream || c.peer < 0 ||
        c.peer >= comm->size || c.peer == comm->rank)
      blame("a group: another communicator, stream, or no such peer");
  comm->pretended = 2;
  if (library().break_next.exchange(false)) {
    std::lock_guard lock(comm->clique->mutex);
    comm->error = kInternalError;
    return kNcclInProgress;
  }
  calls[0].stream->host([comm, number = comm->called++, calls] { operate(comm, number, calls); });
  return kNcclInProgress;
}

int finalize(ncclComm* p) {
  const auto comm = hold(p, "finalize");
  if (!comm) return kInvalidUsage;
  std::lock_guard lock(comm->clique->mutex);
  comm->finalizing = true;
  comm->clique->finalized++;
  for (const auto& [ranks, channel] : comm->clique->channels)
    if (!channel.sent.empty()) blame(cat(channel.sent.size(), " sends were never received"));
  if (comm->ended != comm->called) blame("finalized with operations under way");
  return kNcclInProgress;
}

int forget(ncclComm* p, bool aborted) {
  const auto comm = hold(p, aborted ? "abort" : "destroy");
  if (!comm) return kInvalidUsage;
  {
    std::lock_guard lock(comm->clique->mutex);
    if (!aborted && comm->clique->finalized < comm->size)
      blame("destroyed before all ranks had finalized");
    comm->aborted = aborted;
    comm->clique->changed.notify_all();
  }
  std::lock_guard lock(library().mutex);
  living().erase(p);
  library().live--;
  return kNcclSuccess;
}
int destroy(ncclComm* comm) { return forget(comm, false); }
int abort(ncclComm* comm) { return forget(comm, true); }
const char* error_text(int code) {
  return code == kInternalError ? "internal error" : "invalid usage";
}

constexpr NcclApi table(int (*gpu)()) {
  return {gpu, use_gpu, gpu_name, get_id, init, async_error, send, recv, group_start, group_end,
      finalize, destroy, abort, error_text};
}

}  // namespace

std::vector<std::string> misuse() {
  std::lock_guard lock(library().mutex);
  return std::exchange(library().misuse, {});
}

int live_communicators() { return library().live; }
void break_next_operation() { library().break_next = true; }

const NcclApi& api() {
  static constexpr NcclApi made = table(own_gpu);
  return made;
}
const NcclApi& api_of_one_gpu() {
  static constexpr NcclApi made = table(one_gpu);
  return made;
}

}  // namespace duet::fake_nccl
