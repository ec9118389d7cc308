// Transport: how one rank's messages reach another. Groups and collectives are built on it once, in
// comm.cpp, which does not know what carries a message.
//
// A MESSAGE has two sides: one rank posts the send, another the receive, in either order. They
// match when peers and tag agree, and of several with the same peers and tag in the order in which
// each rank posted its sides. Posting never blocks and never copies the data aside: the memory
// belongs to the message until it is done (rendezvous), and messages with different tags do not
// wait for one another.
//
// THE VERBS. A transport makes the sides of messages, in the host's memory or in a GPU's, posts
// them, and takes back those that are dropped; sides are waited for, by a thread or by a stream. A
// transport may also do a whole collective in its own way, and be told what messages will flow
// (`open`, `add_group`). What each needs to know of a message it keeps in a Message of its own:
//
//   local.cpp     ranks are threads: whoever posts second copies from memory to memory, on GPUs
//                 behind events; over an emulated link it books when the message arrives
//   mpi_mpi.cpp   ranks are processes: a thread of each rank makes all MPI calls; GPU memory goes
//                 by way of host memory
//   nccl_nccl.cpp on top of one of these two: it takes over what lies in GPU memory
//
// MET AND DONE. A side is `met` once the host need do no more for it but wait: its data is there,
// or, in GPU memory, what brings the data has been enqueued. It is done when the data is there.
//
// THREADS. A side is made by the rank's thread; any thread of the rank may post it and wait.
// FAILING. The first failure of a rank is kept; it wakes all that wait, and whatever is called then
// throws it.
// Read next: transport.cpp.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/comm.h"

namespace duet {

// Tags travel as 23 bits, what every MPI gives: 0, kind 2, stage 9, microbatch 11; or 1, group 11,
// number of the collective 11.
constexpr int kTagBits = 23;
constexpr uint32_t kHeaderTag = 3u << 20;  // no Tag's: an NCCL message's announcement
uint32_t pack(Tag tag);
std::string action_text(uint32_t packed_tag);  // "3F7"

// How who must look for himself waits: first without a pause, for that long, then with pauses.
constexpr auto kSpin = std::chrono::microseconds(50), kPause = std::chrono::microseconds(20);

// --- a rank --------------------------------------------------------------------------------------

// One rank, as all that carries its messages shares it: who it is, what it sent, how it waits and
// fails. Any thread may call it.
class RankState {
 public:
  // rank_here: its number among the ranks on its machine
  RankState(int rank, int size, const RunOptions& options, int rank_here);
  const int rank, size;  // of the world
  const int rank_here;
  const double timeout;  // seconds
  const LinkModel link;
  std::atomic<bool> patient = false;  // no timeout

  Traffic traffic;  // the rank's thread's
  void count(int peer, int64_t bytes);

  // Blocks until `ended`, which is asked under this object's mutex whenever something was set.
  // After the timeout throws an Error that says who waits for whom and for what.
  using Condition = std::function<bool()>;
  void wait(const Condition& ended, const std::function<std::string()>& awaited);
  void set(std::atomic<bool>& flag);  // after which the flag may be gone
  void sleep_until(uint64_t time);    // nanoseconds (clock.h)
  [[noreturn]] void time_out(const std::string& awaited) const;
  // What a wait calls again and again where messages cannot go on by themselves; returns whether it
  // moved something. Set by the rank's thread while nothing waits.
  Condition progress;

  // Runs `work` in the stream's order. What it throws, maybe on the stream's thread, becomes the
  // rank's failure, and then nothing more is run.
  void in_order(Stream& stream, std::function<void()> work);

  void fail(std::exception_ptr why);
  bool failed();
  void check();  // throws if the rank has failed

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::exception_ptr failure_;
};

// What a rank throws that stops only because another one failed: never the error that is reported.
struct Stopped : Error {
  using Error::Error;
};

// --- a message -----------------------------------------------------------------------------------

// One rank's side of a message.
struct Side {
  bool send;
  int peer;      // rank of the world
  uint32_t tag;  // kTagBits bits
  Bytes memory;
  const char* collective = nullptr;  // its name; null for a message by itself
  std::string text() const;          // what is awaited, for people: "3F7 from rank 1"
};

// Of a side in GPU memory: from when its memory may be used, where copies are enqueued, and when
// they have happened. A collective copies on its own stream, any other message on a stream on loan
// that serves it alone.
class OnGpu {
 public:
  OnGpu(const Side& side, Stream& after);
  ~OnGpu();
  const std::unique_ptr<Event> ready;
  std::shared_ptr<Event> copied;  // made by whoever copies, before the side is met
  Stream& stream();               // for the rank's thread

 private:
  Device& device_;
  Stream* stream_;
  std::unique_ptr<Stream> own_stream_;
};
std::unique_ptr<Event> record(Stream& stream);  // a new event of what is enqueued so far

// A side under way. Dropped before it is met, it is taken back: nobody touches the memory
// afterwards.
struct Message : std::enable_shared_from_this<Message> {
  // after: the stream after whose work it can begin, for GPU memory; null: host memory
  Message(Transport& transport, const Side& side, Stream* after);
  virtual ~Message() = default;

  virtual bool done();
  virtual void wait();        // the calling thread
  void wait(Stream& stream);  // work enqueued from now on starts after the message

  // What these are made of. meet: the calling thread waits until it is met. The rest is for GPU
  // memory, of one that is met: `landed` enqueues what is left to do and returns the event after
  // which the data is there, null where met is all; `land` has the stream wait for that.
  virtual void meet();
  virtual Event* landed() { return gpu ? gpu->copied.get() : nullptr; }
  virtual void land(Stream& stream);

  Transport& transport;
  RankState& state;
  const Side side;
  std::optional<OnGpu> gpu;
  bool posted = false;            // others may touch the memory
  std::atomic<bool> met = false;  // by RankState::set
};

// --- what carries it -----------------------------------------------------------------------------

// One rank's part of a collective: what it exchanges with every other rank of the group.
struct Leg {
  int peer;  // in the group
  Bytes send = {}, recv = {};
};
struct Collective {
  const char* name;
  uint32_t group, number;      // number: of the group's collectives, modulo 2048
  std::span<const int> ranks;  // the group's, of the world
  std::vector<Leg> legs = {};
  std::string text() const;  // "all-reduce 3 of group 1"
};

class Transport {
 public:
  explicit Transport(std::shared_ptr<RankState> state) : state(std::move(state)) {}
  Transport(const Transport&) = delete;
  virtual ~Transport() = default;
  const std::shared_ptr<RankState> state;

  // Dropped by an exception, it fails the rank, so that nothing which is dropped after it waits for
  // other ranks.
  Guard unwinding();

  // Begins a side in the order of a stream, whose device holds its memory; null: host memory, now.
  std::shared_ptr<Message> begin(const Side& side, Stream* after);
  // A collective likewise: received in that order; null: when it returns.
  virtual void exchange(const Collective& collective, Stream* stream);

  virtual std::unique_ptr<Message> make(const Side& side, Stream* after) = 0;
  virtual void post(Message& m) = 0;    // one of its own; never blocks
  virtual void cancel(Message& m) = 0;  // one that is posted and not met

  // Of Channels: what must be there before messages in the device's memory can flow, until the
  // result is dropped.
  using Pairs = std::vector<std::pair<int, int>>;
  virtual Guard open(Comm&, Device&, const Pairs&) { return nullptr; }
  virtual void add_group(Comm&, uint32_t) {}  // the group's id
};

// The ranks of one process; they must live until the last rank has ended.
std::vector<std::unique_ptr<Transport>> make_local_ranks(const RunOptions& options);

// `under`; with --transport nccl what lies in GPU memory goes by NCCL instead.
std::unique_ptr<Transport> with_nccl(std::unique_ptr<Transport> under, const RunOptions& options);

// run_ranks under MPI, for a job that its launcher announced as `launcher`. (A build without MPI:
// throws UsageError.)
void run_mpi(
    const RunOptions& options, const Launcher& launcher, const std::function<void(Comm&)>& rank);

// What must be equal on all ranks for equal bits: compiler, instruction set, processor features
// that the C library looks at, and a hash of the program.
std::string build_text();

}  // namespace duet
