// The MPI transport: ranks are processes. One thread of each rank makes all MPI calls: it takes
// what the rank's other threads post, tests what is under way and wakes those who wait. It looks
// often while messages come and pauses between looks while they do not, so that waiting costs
// little of a core; with nothing under way it sleeps.
//
// MPI matches messages of one source and tag in order and leaves others alone, which is just the
// transport's contract; its reductions and other collectives are not used.
//
// Failing: a rank that throws prints its error and aborts the job; of a killed one mpirun and srun
// --kill-on-bad-exit take care.
// Read next: scripts/train.sbatch, README.md.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "comm/transport.h"

namespace duet {
namespace {

constexpr int kLooks = 500;  // without success, before pauses begin
constexpr auto kPause = std::chrono::microseconds(20);
// bytes in one MPI message, whose count is an int; longer ones go in pieces
constexpr int64_t kLargest = int64_t(1) << 30;

std::string mpi_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, size_t(length));
}

class MpiTransport final : public Transport {
 public:
  MpiTransport(int rank, int size, const RunOptions& options)
      : Transport(rank, size, options), thread_([this] {
          try {
            progress();
          } catch (...) {
            fail(std::current_exception());
          }
        }) {}
  ~MpiTransport() override {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    work_.notify_one();
    thread_.join();
  }

  void post(Post& p) override {
    std::lock_guard lock(mutex_);
    p.posted = true;
    fresh_.push_back(&p);
    work_.notify_one();
  }

  // Only a rank that fails drops a message under way. It ends with its process; until then nobody
  // may look for its post.
  void cancel(Post& p) override {
    std::lock_guard lock(mutex_);
    std::erase(fresh_, &p);
    for (Piece& piece : pieces_)
      if (piece.post == &p) piece.post = nullptr;
  }

  bool moves_gpu_memory() const override { return false; }

 private:
  struct Piece {  // one MPI message
    Post* post;   // null: taken back
    int bytes;
  };

  void progress() {
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
      if (idle > kLooks) work_.wait_for(lock, kPause);
    }
  }

  // Gives MPI what was posted; a message that is still being copied from a GPU is kept, and so are
  // later ones of the same tag.
  void start_fresh() {
    for (Post* p : std::exchange(fresh_, {})) {
      const auto same = [&](const Post* kept) {
        return kept->peer == p->peer && kept->tag == p->tag && kept->send == p->send;
      };
      const bool copying = p->send && p->ready && !p->ready->done();
      if (copying || std::any_of(fresh_.begin(), fresh_.end(), same))
        fresh_.push_back(p);
      else
        start(*p);
    }
  }

  void start(Post& p) {
    p.pieces = std::max<int64_t>(1, (p.bytes + kLargest - 1) / kLargest);
    for (int64_t i = 0; i < p.pieces; i++) {
      const int bytes = int(std::min(kLargest, p.bytes - i * kLargest));
      char* data = static_cast<char*>(p.data) + i * kLargest;
      MPI_Request& request = requests_.emplace_back();
      const int code = p.send
          ? MPI_Isend(data, bytes, MPI_BYTE, p.peer, int(p.tag), MPI_COMM_WORLD, &request)
          : MPI_Irecv(data, bytes, MPI_BYTE, p.peer, int(p.tag), MPI_COMM_WORLD, &request);
      DUET_CHECK(code == MPI_SUCCESS, p.text(), ": ", mpi_text(code));
      pieces_.push_back({&p, bytes});
    }
  }

  // Looks once at all that is under way; true if something ended.
  bool test() {
    int count = 0;
    ended_.resize(requests_.size());
    statuses_.resize(requests_.size());
    const int code = MPI_Testsome(
        int(requests_.size()), requests_.data(), &count, ended_.data(), statuses_.data());
    if (count == 0 || count == MPI_UNDEFINED) return false;
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < size_t(count); i++)
      finish(pieces_[size_t(ended_[i])], code == MPI_ERR_IN_STATUS ? statuses_[i].MPI_ERROR : code,
          statuses_[i]);
    size_t kept = 0;
    for (size_t i = 0; i < requests_.size(); i++) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      requests_[kept] = requests_[i];
      pieces_[kept++] = pieces_[i];
    }
    requests_.resize(kept);
    pieces_.resize(kept);
    return true;
  }

  void finish(const Piece& piece, int code, const MPI_Status& status) {
    Post* p = piece.post;
    if (!p) return;
    int bytes = piece.bytes;
    if (!p->send) MPI_Get_count(&status, MPI_BYTE, &bytes);
    DUET_CHECK(code == MPI_SUCCESS && bytes == piece.bytes, p->text(), ": this side expects ",
        p->bytes, " bytes, the other ",
        code == MPI_SUCCESS ? "sends fewer" : "sends more: " + mpi_text(code));
    if (--p->pieces == 0) complete(*p);
  }

  std::condition_variable work_;
  std::vector<Post*> fresh_;           // not yet given to MPI
  std::vector<Piece> pieces_;          // under way
  std::vector<MPI_Request> requests_;  // theirs; the thread's own, as are the next two
  std::vector<int> ended_;
  std::vector<MPI_Status> statuses_;
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
    int* largest_tag = nullptr;
    int known = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest_tag, &known);
    usable = threads == MPI_THREAD_MULTIPLE && known && *largest_tag >= (1 << kTagBits) - 1;
  }
  ~MpiSession() { MPI_Finalize(); }
  int rank = 0, size = 0;
  bool usable = false;
};

// Prints the error and ends the job. Ranks that fail for the same reason do so at the same time, so
// rank 0 may speak first.
[[noreturn]] void abort_job(int rank, const std::string& text, int status) {
  using namespace std::chrono_literals;
  if (rank != 0) std::this_thread::sleep_for(300ms);
  fprintf(stderr, "duet: %s\n", text.c_str());
  fflush(stderr);
  std::this_thread::sleep_for(200ms);  // for mpirun to pass the line on
  MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace

bool have_mpi() { return true; }

void run_mpi(
    const RunOptions& options, const Launch& launch, const std::function<void(Comm&)>& rank) {
  static const MpiSession mpi;
  try {
    const std::string option = cat("--transport ", wire_name(options.transport), ": ");
    require(mpi.size >= launch.ranks, option, launch.by, " started ", launch.ranks,
        " tasks, but MPI sees ", mpi.size,
        ": they do not know of one another; start them with srun --mpi=pmix (srun --mpi=list shows "
        "what there is) or with ",
        "mpirun");
    require(mpi.size == options.ranks, option, "expected one process for each of ", options.ranks,
        " ranks, found ", mpi.size, "; start duet with mpirun -np ", options.ranks);
    require(
        mpi.usable, option, "this MPI lacks MPI_THREAD_MULTIPLE or tags of ", kTagBits, " bits");
    MpiTransport transport(mpi.rank, mpi.size, options);
    transport.nccl = options.nccl;
    Comm world(transport);
    world.require_same("build", build_text());
    rank(world);
    transport.check();
    world.barrier();
  } catch (const UsageError& e) {
    abort_job(mpi.rank, e.what(), 2);
  } catch (const std::exception& e) {
    abort_job(mpi.rank, cat("rank ", mpi.rank, ": ", e.what()), 1);
  }
}

}  // namespace duet
