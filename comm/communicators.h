// A rank's NCCL communicators: made, called, watched, and aborted when the rank fails.
// nccl_nccl.cpp's own; what flows over them and why: README.md. A call returns when NCCL has taken
// it on the host; while it has not, and while the GPU is at it, the thread that watches counts its
// time.
// Read next: nccl_nccl.cpp.
#pragma once
#include <nccl.h>
#include <unistd.h>

#include <list>
#include <thread>

#include "comm/transport.h"

namespace duet {

class Communicators {
 public:
  Communicators(RankState& state, Device& device) : state_(state), device_(device) {
    cudaGetDevice(&gpu_);
    watcher_ = std::thread([this] { watch(); });
  }
  ~Communicators() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    watcher_.join();
    abort_all();
  }

  // no other GPU's: "host, GPU 0000:1b:00.0"
  std::string gpu_name() const {
    char host[256] = "", bus[32] = "";
    gethostname(host, sizeof host - 1);
    cudaDeviceGetPCIBusId(bus, sizeof bus, gpu_);
    return cat(host, ", GPU ", bus);
  }

  ncclUniqueId make_id() const {
    ncclUniqueId id;
    check(ncclGetUniqueId(&id), "an id");
    return id;
  }

  // Called by all its ranks. NCCL connects two ranks at their first message, for which both must be
  // there: now, by a word to each other rank, from each other rank, or both ways.
  struct Member {
    int ranks, rank;
    bool sends, receives;
    int max_blocks;  // of a GPU, that an operation may take
  };
  ncclComm_t make(const ncclUniqueId& id, const Member& me) {
    ncclComm_t comm = init(id, me);
    const Buf words = device_.buffer(1, 2 * me.ranks, Dtype::i32, Use::messages);
    const auto word = [&](bool wanted, int i) {
      return wanted ? std::as_writable_bytes(std::span(words->row<int32_t>(0) + i, 1)) : Bytes();
    };
    std::vector<Leg> legs;
    for (int peer = 0; peer < me.ranks; peer++)
      if (peer != me.rank)
        legs.push_back({peer, word(me.sends, 2 * peer), word(me.receives, 2 * peer + 1)});
    const std::string text = "the first message of an NCCL communicator";
    const auto landed = launch(device_.compute(), comm, legs, text);
    state_.wait([&] { return landed->done(); }, [&] { return text; });
    state_.check();
    return comm;
  }

  // One NCCL group in the stream's order; peers are ranks of the communicator. text: what it is,
  // for people. The stream hands its CUDA stream to whatever it launches, and so to NCCL.
  std::shared_ptr<Event> launch(
      Stream& stream, ncclComm_t comm, const std::vector<Leg>& legs, const std::string& text) {
    const std::function<void(void*)> call = [&](void* raw_stream) {
      const auto cuda_stream = static_cast<cudaStream_t>(raw_stream);
      std::unique_lock lock(mutex_);
      state_.check();
      ncclResult_t failure = ncclSuccess;  // a group that was begun is ended in any case
      const auto note = [&](ncclResult_t code) {
        if (code != ncclInProgress && failure == ncclSuccess) failure = code;
      };
      note(ncclGroupStart());
      for (const auto& [peer, s, r] : legs) {
        if (!s.empty()) note(ncclSend(s.data(), s.size(), ncclInt8, peer, comm, cuda_stream));
        if (!r.empty()) note(ncclRecv(r.data(), r.size(), ncclInt8, peer, comm, cuda_stream));
      }
      note(ncclGroupEnd());
      check(failure, text);
      settle(lock, text, comm);
    };
    const auto run = [](void* cuda_stream, int64_t, const void* p) {
      (*static_cast<const std::function<void(void*)>*>(p))(cuda_stream);
    };
    stream.launch({"NCCL", nullptr, run}, 1, &call, sizeof call, 0);
    std::shared_ptr<Event> landed = record(stream);
    std::lock_guard lock(mutex_);
    flights_.push_back({landed, text, Clock::now()});
    return landed;
  }

  // When all that was launched is done, all ranks end their communicators, in the order in which
  // they were made.
  void finish() {
    std::unique_lock lock(mutex_);
    settle(lock, "the last messages", [&] {
      flights_.remove_if([](const Flight& f) { return f.landed->done(); });
      return flights_.empty();
    });
    while (!all_.empty()) {
      check(ncclCommFinalize(all_.front()), "the end of a communicator");
      settle(lock, "the other ranks of an NCCL communicator to end", all_.front());
      check(ncclCommDestroy(all_.front()), "the end of a communicator");
      all_.erase(all_.begin());
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Flight {  // given to NCCL
    std::shared_ptr<Event> landed;
    std::string text;
    Clock::time_point since;
  };

  static void check(ncclResult_t code, const std::string& text) {
    DUET_CHECK(code == ncclSuccess || code == ncclInProgress, text,
        ": NCCL says: ", ncclGetErrorString(code));
  }
  static ncclResult_t async_error(ncclComm_t comm) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = ncclCommGetAsyncError(comm, &state);
    return code == ncclSuccess ? state : code;
  }

  bool late(Clock::time_point since) const {
    return Clock::now() - since > std::chrono::duration<double>(state_.timeout);
  }

  ncclComm_t init(const ncclUniqueId& id, const Member& me) {
    std::unique_lock lock(mutex_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // ncclInProgress: ask until it says otherwise
    config.maxCTAs = me.max_blocks;
    ncclComm_t comm = nullptr;
    const ncclResult_t code = ncclCommInitRankConfig(&comm, me.ranks, id, me.rank, &config);
    if (comm) all_.push_back(comm);
    check(code, "a communicator");
    settle(lock, "the other ranks of an NCCL communicator", comm);
    return comm;
  }

  // Until something is so; asked with the mutex held.
  void settle(std::unique_lock<std::mutex>& lock, const std::string& text,
      const std::function<bool()>& settled) {
    for (const auto begin = Clock::now();;) {
      state_.check();  // from then on the communicators may be gone
      if (settled()) return;
      if (late(begin)) state_.time_out(text);
      lock.unlock();
      if (Clock::now() - begin > kSpin) std::this_thread::sleep_for(kPause);
      lock.lock();
    }
  }

  // Until what was asked of a communicator has been done on the host.
  void settle(std::unique_lock<std::mutex>& lock, const std::string& text, ncclComm_t comm) {
    settle(lock, text, [&] {
      const ncclResult_t code = async_error(comm);
      check(code, text);
      return code == ncclSuccess;
    });
  }

  // The thread: fails the rank if a communicator has failed or an operation takes too long.
  void watch() {
    cudaSetDevice(gpu_);
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::milliseconds(20), [&] { return ending_; })) {
      try {
        for (ncclComm_t comm : all_) check(async_error(comm), "a communicator");
        flights_.remove_if([](const Flight& f) { return f.landed->done(); });
        for (const Flight& f : flights_)
          if (late(f.since)) state_.time_out(f.text);
      } catch (...) {
        state_.fail(std::current_exception());
      }
      if (state_.failed()) abort_all();
    }
  }

  void abort_all() {
    for (ncclComm_t comm : std::exchange(all_, {})) ncclCommAbort(comm);
  }

  RankState& state_;
  Device& device_;
  int gpu_ = 0;
  // guards NCCL's communicators against the thread that may abort them, and what follows
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<ncclComm_t> all_;  // in the order in which they were made; empty once aborted
  std::list<Flight> flights_;
  bool ending_ = false;
  std::thread watcher_;
};

}  // namespace duet
