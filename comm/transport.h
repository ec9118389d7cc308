// Transport: how one rank's messages reach another. Collectives and groups are built on these
// verbs, once, in comm.cpp.
//
// A message has two sides, each a Post: one rank posts the send, the other the receive, in either
// order; they match when peers and tag agree, and of several with the same peers and tag in the
// order in which each side posted them. Posting never blocks and never copies the data aside: the
// buffer belongs to the message until the post is done (rendezvous), and messages with different
// tags do not wait for one another.
//
//   local.cpp     ranks are threads: whoever posts second copies from buffer to buffer
//   mpi_mpi.cpp   ranks are processes: a thread of each rank makes all MPI calls
//   nccl.h        no transport: it rides on one of these two and takes over what lies in GPU memory
//
// Threads: post, wait and done may be called by any thread of the rank.
// Errors: the first failure of a rank (`fail`) is kept; it wakes all that wait, and whatever is
// called then throws it.
// Read next: local.cpp, then comm.cpp.
#pragma once
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/comm.h"

namespace duet {

class NcclLink;
class GpuLink;

// Tags travel as 23 bits, what every MPI gives: 0, kind 2, stage 9, microbatch 11; or 1, group 10,
// number of the collective 12.
constexpr int kTagBits = 23;
constexpr uint32_t kHeaderTag = 3u << 20;  // no Tag's: an NCCL message's announcement
uint32_t pack(Tag tag);
std::string action_text(uint32_t packed_tag);  // "3F7"
uint32_t pack_collective(uint32_t group, uint32_t number);

// One rank's part of a collective.
struct Leg {
  int peer;  // in the group
  void* data;
  int64_t bytes;
};

// One side of a message. Destroyed before it is done, it takes the message back: nobody touches the
// buffer afterwards.
struct Post {
  Post(Transport& t, bool is_send, int to, uint32_t packed_tag)
      : transport(t), send(is_send), peer(to), tag(packed_tag) {}
  Post(const Post&) = delete;
  ~Post();
  std::string text() const;  // what is awaited, for people: "3F7 from rank 1"

  Transport& transport;
  const bool send;
  const int peer;      // rank in the world
  const uint32_t tag;  // kTagBits bits
  void* data = nullptr;
  int64_t bytes = 0;
  const char* collective = nullptr;  // its name; null for a message of isend and irecv

  // Only for memory on a GPU: the buffer may be used after `ready`, `copied` tells when that has
  // happened, and copies are enqueued on `lane`. Between threads it is one copy, on the lane of
  // whoever posts second, and `copied` is set before the post is done. Between processes it goes by
  // way of `staging`, host memory, to which `data` then points. Over NCCL it goes by `link`, and
  // the post is done once NCCL has been called.
  std::shared_ptr<Event> ready, copied;
  Stream* lane = nullptr;
  NcclLink* link = nullptr;
  std::unique_ptr<Stream> own_lane;  // keeps the lane where it serves this message alone
  Buf staging;
  void* gpu_data = nullptr;
  void deliver();  // what came by staging: enqueues its copy to the GPU, once

  // [1, 1] over an emulated link between threads: LinkWait waits for it, after `copied`
  Tensor gpu_arrival;
  // of CPU memory, over an emulated link; set before `done`, from when on it is waited for
  Time arrival;
  bool posted = false, done = false;  // `done` is guarded by the transport's mutex
  int64_t pieces = 0;                 // under way, where a transport cuts messages; its own
};

class Transport {
 public:
  Transport(int rank, int size, const RunOptions& options);
  virtual ~Transport();
  Transport(const Transport&) = delete;
  int rank() const { return rank_; }
  int size() const { return size_; }

  virtual void post(Post& p) = 0;
  virtual void cancel(Post& p) = 0;  // of a post that is not done; for ~Post
  virtual bool moves_gpu_memory() const = 0;

  void count(int peer, int64_t bytes);  // into `traffic`; by the rank's thread
  Traffic traffic;

  // blocks until done; after the timeout throws an Error that says who waits for whom and for what
  void wait(Post& p);
  bool done(Post& p);
  [[noreturn]] void time_out(const std::string& awaited) const;
  double timeout() const { return timeout_; }
  void fail(std::exception_ptr why);
  bool failed();
  void check();  // throws if the rank has failed

  const NcclApi* nccl = nullptr;      // under --transport nccl
  std::unique_ptr<NcclLink> link;     // while the rank has Channels
  std::unique_ptr<GpuLink> gpu_link;  // likewise, over an emulated link
  const LinkModel& link_model() const { return link_; }

 protected:
  // p is done: wakes its waiter; the mutex is held, and once it is released p may be gone
  void complete(Post& p);
  std::mutex mutex_;
  std::condition_variable cv_;

 private:
  void sleep_until_arrival(std::unique_lock<std::mutex>& lock, const Post& p);
  const int rank_, size_;
  const double timeout_;  // seconds
  const LinkModel link_;
  std::exception_ptr failure_;
};

// What a rank throws that stops only because another one failed: never the error that is reported.
struct Stopped : Error {
  using Error::Error;
};

// The ranks of one process; they must live until the last rank has ended.
std::vector<std::unique_ptr<Transport>> make_local_ranks(const RunOptions& options);

// run_ranks under MPI, for a job that its launcher announced as `launch`. (A build without MPI:
// throws UsageError.)
void run_mpi(
    const RunOptions& options, const Launch& launch, const std::function<void(Comm&)>& rank);

// What must be equal on all ranks for equal bits: compiler, instruction set, processor features
// that the C library looks at, and a hash of the program.
std::string build_text();

}  // namespace duet
