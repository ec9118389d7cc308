// The MPI transport: ranks are processes. One thread of each rank makes all MPI calls: it takes
// what the rank's other threads post, tests what is under way and wakes those who wait. It looks
// often while messages come and pauses between looks while they do not, so that waiting costs
// little of a core; with nothing under way it sleeps.
//
// MPI matches messages of one source and tag in order and leaves others alone, which is just the
// transport's contract; its reductions and other collectives are not used.
//
// Failing: a rank that throws prints its error, tells the others that it has, and aborts the job.
// Of one that is killed the ranks beside it on its machine say so: while they wait for messages
// they look whether its process is still there. mpirun, or srun --kill-on-bad-exit, ends the rest.
// Read next: mpi_nompi.cpp.
#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "comm/transport.h"
#include "model/base/hash.h"
#include "model/base/memory_short.h"
#include "model/base/text.h"

namespace duet {
namespace {

constexpr int kLooks = 500;  // without success, before pauses begin
constexpr auto kBetweenLooksForProcesses = std::chrono::milliseconds(50);
constexpr int kFailed = int(kHeaderTag) + 1;  // no Tag's: the sender has said why it ends
// bytes in one MPI message, whose count is an int; longer ones go in parts
constexpr int64_t kLargest = int64_t(1) << 30;

std::string mpi_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, size_t(length));
}

// A rank as its system knows it: by a number, which counts within its machine and, in containers,
// its namespace.
struct Process {
  int64_t id = getpid();
  uint64_t place = 0;  // 0: not known
};

Process this_process() {
  Process me;
  std::string boot;
  std::error_code error;
  const auto space = std::filesystem::read_symlink("/proc/self/ns/pid", error);
  if (!error && std::ifstream("/proc/sys/kernel/random/boot_id") >> boot)
    me.place = checksum(boot + space.string());
  return me;
}

struct MpiMessage : Message {
  MpiMessage(Transport& transport, const Side& side, Stream* after)
      : Message(transport, side, after), memory(side.memory) {
    if (!gpu) return;
    staging = after->device().host_buffer(1, (int64_t(memory.size()) + 3) / 4, Dtype::i32);
    memory = {static_cast<std::byte*>(staging->data), memory.size()};
    if (side.send) copy(memory, side.memory);
  }
  ~MpiMessage() override {
    if (!gpu || !gpu->copied) return;
    try {
      gpu->copied->synchronize();  // staging serves another message next
    } catch (const std::exception&) {
      // the stream's failure is reported where it is waited for
    }
  }
  Event* landed() override {
    if (gpu && !side.send && !gpu->copied) copy(side.memory, memory);
    return Message::landed();
  }
  void copy(Bytes to, Bytes from) {
    gpu->stream().wait(*gpu->ready);
    gpu->stream().copy(to.data(), from.data(), from.size());
    gpu->copied = record(gpu->stream());
  }

  Bytes memory;        // MPI's
  Buf staging;         // on behalf of GPU memory
  int64_t pieces = 0;  // under way; the transport's
};

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(std::shared_ptr<RankState> state)
      : Transport(std::move(state)), thread_([this] { progress(); }) {}
  ~MpiTransport() override {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    work_.notify_one();
    thread_.join();
  }

  std::unique_ptr<Message> make(const Side& side, Stream* after) override {
    return std::make_unique<MpiMessage>(*this, side, after);
  }

  void post(Message& m) override {
    std::lock_guard lock(mutex_);
    m.posted = true;
    fresh_.push_back(static_cast<MpiMessage*>(&m));
    work_.notify_one();
  }

  // From now on a rank of this machine whose process is gone is a failure. [ranks]
  void watch(std::vector<Process> processes) {
    std::lock_guard lock(mutex_);
    processes_ = std::move(processes);
  }

  // Only a rank that fails drops a message under way. It ends with its process; until then nobody
  // may look for its side.
  void cancel(Message& m) override {
    std::lock_guard lock(mutex_);
    std::erase(fresh_, &m);
    for (Piece& piece : pieces_)
      if (piece.message == &m) piece.message = nullptr;
  }

 private:
  struct Piece {          // one MPI message
    MpiMessage* message;  // null: taken back
    int bytes;
  };

  void progress() try {
    int idle = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      start_fresh();
      if (pieces_.empty() && fresh_.empty()) {
        if (ending_) return;
        work_.wait(lock, [&] { return ending_ || !fresh_.empty(); });
        continue;
      }
      lock.unlock();
      const bool moved = test();
      lock.lock();
      idle = moved ? 0 : idle + 1;
      if (ending_ && idle > kLooks) return;  // the rank failed
      if (idle <= kLooks) continue;
      look_for_processes();
      work_.wait_for(lock, kPause);
    }
  } catch (...) {
    state->fail(std::current_exception());
  }

  // Those that are gone without a word were killed: what is awaited does not come any more.
  void look_for_processes() {
    const auto now = std::chrono::steady_clock::now();
    if (processes_.empty() || now < next_look_) return;
    next_look_ = now + kBetweenLooksForProcesses;
    const Process& me = processes_[size_t(state->rank)];
    for (int r = 0; r < state->size; r++) {
      const Process& p = processes_[size_t(r)];
      if (!p.place || p.place != me.place || kill(pid_t(p.id), 0) == 0 || errno != ESRCH) continue;
      int said = 0;
      MPI_Iprobe(r, kFailed, MPI_COMM_WORLD, &said, MPI_STATUS_IGNORE);
      char host[60] = "";
      gethostname(host, sizeof host - 1);
      if (!said) throw Error(cat("rank ", r, ", process ", p.id, " on ", host, ", was killed"));
    }
  }

  // Gives MPI what was posted; a message that is still being copied from a GPU is kept, and so are
  // later ones of the same tag.
  void start_fresh() {
    for (MpiMessage* m : std::exchange(fresh_, {})) {
      const Side& side = m->side;
      const auto same = [&](const MpiMessage* kept) {
        return kept->side.peer == side.peer && kept->side.tag == side.tag &&
            kept->side.send == side.send;
      };
      const bool copying = side.send && m->gpu && !m->gpu->copied->done();
      if (copying || std::any_of(fresh_.begin(), fresh_.end(), same))
        fresh_.push_back(m);
      else
        start(*m);
    }
  }

  void start(MpiMessage& m) {
    const auto& [send, peer, tag, memory, collective] = m.side;
    const int64_t size = int64_t(m.memory.size());
    m.pieces = std::max<int64_t>(1, (size + kLargest - 1) / kLargest);
    for (int64_t i = 0; i < m.pieces; i++) {
      const int bytes = int(std::min(kLargest, size - i * kLargest));
      std::byte* data = m.memory.data() + i * kLargest;
      MPI_Request& request = requests_.emplace_back();
      const int code = send
          ? MPI_Isend(data, bytes, MPI_BYTE, peer, int(tag), MPI_COMM_WORLD, &request)
          : MPI_Irecv(data, bytes, MPI_BYTE, peer, int(tag), MPI_COMM_WORLD, &request);
      DUET_CHECK(code == MPI_SUCCESS, m.side.text(), ": ", mpi_text(code));
      pieces_.push_back({&m, bytes});
    }
  }

  // Looks at all that is under way; true if something ended.
  bool test() {
    for (bool moved = false;; moved = true) {
      int i = 0, ended = 0;
      MPI_Status status;
      const int code = MPI_Testany(int(requests_.size()), requests_.data(), &i, &ended, &status);
      if (!ended || i == MPI_UNDEFINED) return moved;
      std::lock_guard lock(mutex_);
      finish(pieces_[size_t(i)], code, status);
      pieces_.erase(pieces_.begin() + i);
      requests_.erase(requests_.begin() + i);
    }
  }

  void finish(const Piece& piece, int code, const MPI_Status& status) {
    MpiMessage* m = piece.message;
    if (!m) return;
    int bytes = piece.bytes;
    if (!m->side.send) MPI_Get_count(&status, MPI_BYTE, &bytes);
    DUET_CHECK(code == MPI_SUCCESS && bytes == piece.bytes, m->side.text(), ": this side expects ",
        m->memory.size(), " bytes, the other ",
        code == MPI_SUCCESS ? "sends fewer" : "sends more: " + mpi_text(code));
    if (--m->pieces == 0) state->set(m->met);
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::vector<MpiMessage*> fresh_;     // not yet given to MPI
  std::vector<Piece> pieces_;          // under way
  std::vector<MPI_Request> requests_;  // theirs; the thread's own
  std::vector<Process> processes_;     // of all ranks, once they are known
  std::chrono::steady_clock::time_point next_look_;
  bool ending_ = false;
  std::thread thread_;
};

// MPI in this process: it can be started only once, so it ends with the process.
class MpiSession {
 public:
  MpiSession() {
    int threads = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &threads);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm here;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &here);
    MPI_Comm_rank(here, &rank_here);
    MPI_Comm_free(&here);
    int* largest_tag = nullptr;
    int known = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest_tag, &known);
    usable = threads == MPI_THREAD_MULTIPLE && known && *largest_tag >= (1 << kTagBits) - 1;
  }
  ~MpiSession() { MPI_Finalize(); }
  int rank = 0, size = 0, rank_here = 0;
  bool usable = false;
};

// Prints the error and ends the job. Ranks that fail for the same reason do so at the same time, so
// rank 0 may speak first; what is wrong with the input it has seen too, most of the time.
[[noreturn]] void abort_job(int rank, int ranks, const std::string& text, int status) {
  using namespace std::chrono_literals;
  if (rank != 0) std::this_thread::sleep_for(status == 2 ? 2000ms : 300ms);
  fprintf(stderr, "duet: %s", for_terminal(text).c_str());
  fflush(stderr);
  for (int r = 0; r < ranks; r++) {
    MPI_Request never_waited_for;
    MPI_Isend(nullptr, 0, MPI_BYTE, r, kFailed, MPI_COMM_WORLD, &never_waited_for);
  }
  std::this_thread::sleep_for(200ms);  // for mpirun to pass the line on
  MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace

bool have_mpi() { return true; }

void run_mpi(
    const RunOptions& options, const Launcher& launcher, const std::function<void(Comm&)>& rank) {
  static const MpiSession mpi;
  try {
    const std::string option = cat("--transport ", wire_name(options.transport), ": ");
    require(mpi.size >= launcher.ranks, option, launcher.name, " started ", launcher.ranks,
        " tasks, but MPI sees ", mpi.size,
        ": they do not know of one another; start them with srun --mpi=pmix (srun --mpi=list shows "
        "what there is) or with ",
        "mpirun");
    require(mpi.size == options.ranks, option, "expected one process for each of ", options.ranks,
        " ranks, found ", mpi.size, "; start duet with mpirun -np ", options.ranks);
    require(
        mpi.usable, option, "this MPI lacks MPI_THREAD_MULTIPLE or tags of ", kTagBits, " bits");
    const auto state = std::make_shared<RankState>(mpi.rank, mpi.size, options, mpi.rank_here);
    auto carrier = std::make_unique<MpiTransport>(state);
    MpiTransport& messages = *carrier;
    const auto transport = with_nccl(std::move(carrier), options);
    Comm world(*transport);
    world.require_same("build", build_text());
    messages.watch(world.gather_values(this_process()));
    rank(world);
    state->check();
    world.barrier();
  } catch (const UsageError& e) {
    abort_job(mpi.rank, mpi.size, e.what(), 2);
  } catch (const std::exception& e) {
    abort_job(mpi.rank, mpi.size, cat("rank ", mpi.rank, ": ", what_of(e)), 1);
  }
}

}  // namespace duet
