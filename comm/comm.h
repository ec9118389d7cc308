// Ranks and what they say to one another. The whole of comm/ for its users; how messages travel is
// in transport.h.
//
// A RANK IS A FUNCTION. run_ranks calls it once for each rank: as threads of this process (`local`,
// the default) or as this MPI process's one rank (`mpi`, under mpirun or srun). Under `nccl` it is
// one or the other, and what lies in GPU memory goes from GPU to GPU. The function gets its Comm,
// the world, and makes all it needs inside, its Device first:
//
//   run_ranks({.ranks = 4}, [&](Comm& world) {
//     auto device = make_cpu_device(1);
//     Comm dp = world.group({world.rank() % 2, world.rank() % 2 + 2});
//     dp.all_reduce(device->compute(), gradients, scratch);
//   });
//
// The first rank to throw decides: its error is thrown by run_ranks with the rank named; the others
// are woken from whatever they wait for, within 10 seconds in any case. Nothing hangs: a message
// that does not come within `timeout` is an error that says who waits for whom and for which
// action.
//
// MESSAGES are asynchronous and tagged by the action whose result they carry (3F7: stage 3,
// forward, microbatch 7), and never queue behind one another: a receive matches the send of the
// same tag, whatever else is under way. COLLECTIVES are called by all ranks of a group in the same
// order.
//
// STREAMS. What takes a Stream is enqueued in that stream's order and returns: data is read after
// the work enqueued before, results are there for the work enqueued after. On the CPU's compute
// stream, which works at once, this means it blocks; on a CommStream that stream's thread does, and
// computation goes on. On CUDA the host may block: between threads until the peer has called its
// side, between processes, where messages go by way of host memory, until the message is there.
//
// EXACTNESS. The one sum between ranks is of exact sums (model/machine/grid.h), whose order changes
// no bit; it is formed here, on all transports alike.
//
// Contract: one thread per rank, the rank's own, uses its Comms. Tensors are contiguous (ld ==
// cols), of equal dtype and stated shape on all ranks, and live until the message is done. A broken
// contract throws Error.
// Read next: gather_named.h.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/link.h"
#include "model/machine/device.h"

namespace duet {

class Transport;
struct Message;
using Bytes = std::span<std::byte>;

// --- ranks ---------------------------------------------------------------------------------------

enum class Wire { local, mpi, nccl };
constexpr const char* wire_name(Wire w) {
  return w == Wire::local ? "local" : w == Wire::mpi ? "mpi" : "nccl";
}

struct RunOptions {
  Wire transport = Wire::local;
  int ranks = 1;         // in MPI processes it must equal their number
  double timeout = 300;  // seconds a rank waits for a message (--comm-timeout)
  // which ranks share a node, and, under local alone, an emulated interconnect; with it all ranks
  // are on the CPU or on one GPU, whose clock they read
  LinkModel link;
};

class Comm;

// Throws what the first failing rank threw, as Error "rank 2: ..." (a UsageError stays as it is).
// Under mpi a failing rank instead prints its error and ends all processes, with exit status 2 for
// a UsageError, else 1.
void run_ranks(const RunOptions& options, const std::function<void(Comm& world)>& rank);

// Who started this process, as one of how many, how many of them on this node, and as which:
// {"mpirun", 4, 2, 3}; {"", 1, 1, 0} where no launcher did. Costs nothing: it reads variables of
// the environment, and MPI is not started before run_ranks.
struct Launcher {
  std::string name;
  int ranks = 1, ranks_here = 1, rank = 0;
};
Launcher find_launcher(const std::function<const char*(const char*)>& getenv =
                           [](const char* name) { return std::getenv(name); });

bool have_mpi();   // whether this program was built with MPI
bool have_nccl();  // or with NCCL

// --- messages ------------------------------------------------------------------------------------

// The action whose result a message carries: F, a stage's output; B, the gradient of its input. W:
// all else between two ranks (experts, their gradients, tensors of a checkpoint), matched by order
// alone. A tag need be unique only between its two ranks while the message is under way, and only
// modulo 2048 microbatches; equal tags match in the order they were posted.
struct Tag {
  enum Kind { F, B, W };
  static constexpr int kStages = 512;
  Kind kind;
  int stage;  // 0 .. kStages-1
  int microbatch;
};

// Payload bytes that a rank sent to others: messages, collectives (an all-reduce sends as often as
// it says) and host values.
struct Traffic {
  int64_t intra = 0, inter = 0;  // within a node, between nodes
};

// A message under way. Drop it only when it is done, or when the rank fails (the message is then
// taken back): the tensor must outlive it.
class Request {
 public:
  Request() = default;
  explicit operator bool() const { return message_ != nullptr; }
  bool done() const;
  void wait() const;  // the calling thread waits

 private:
  friend class Comm;
  explicit Request(std::shared_ptr<Message> message) : message_(std::move(message)) {}
  std::shared_ptr<Message> message_;
};

// What lasts until it is dropped.
using Guard = std::shared_ptr<void>;

// A further stream of the device, for messages. Unlike one from make_stream it does not hold up a
// rank that fails: the waits of its thread are given up.
class CommStream {
 public:
  CommStream(Comm& world, Device& device);
  operator Stream&() { return *stream_; }
  Stream* operator->() { return stream_.get(); }

 private:
  std::unique_ptr<Stream> stream_;
  Guard unwinding_;
};

// What NCCL, or an emulated link, needs before messages in GPU memory can flow; else it does
// nothing. NCCL matches by order, so each pair of ranks that exchanges messages needs a
// communicator for each direction, and each group one for its collectives, all made in one order
// and before they are used. So: all ranks of the world make their Channels at the same point, with
// the same pairs of world ranks, after their devices and before their groups, and drop them after
// all messages. A communicator takes memory: a group, or the world, whose collectives carry host
// values alone says so and gets none. Throws UsageError where two ranks have one GPU, which NCCL
// refuses.
enum class Carries { tensors, host_values };
class Channels {
 public:
  Channels(Comm& world, Device& device, const std::vector<std::pair<int, int>>& pairs,
      Carries of_world = Carries::tensors);

 private:
  Guard open_, unwinding_;
};

class Comm {
 public:
  explicit Comm(Transport& transport);  // the world; made by run_ranks
  Comm(Comm&&) = default;
  Comm& operator=(Comm&&) = default;

  int rank() const { return rank_; }
  int size() const { return int(ranks_.size()); }
  int world_rank(int r) const { return ranks_[size_t(r)]; }
  int rank_here() const;  // this rank's number among the ranks on its machine
  Traffic& traffic();     // of this rank, in all its groups, since it was set to zero
  // while it lasts, what this rank waits for may take as long as it takes: another one writes files
  [[nodiscard]] Guard patience();

  // A group of ranks of the world, numbered as listed. All ranks of the world call it, in the same
  // order, each with the list of its own group (alone: {rank}); groups of one call are disjoint.
  // Only the world has groups.
  Comm group(std::vector<int> ranks, Carries carries = Carries::tensors);

  // `peer` is a rank of this group. The buffer is read, or written, after the work enqueued on
  // `after` so far.
  Request isend(Stream& after, const Tensor& t, int peer, Tag tag);
  Request irecv(Stream& after, const Tensor& t, int peer, Tag tag);
  // Work enqueued on `stream` from now on starts after the message.
  void wait(Stream& stream, const Request& request);

  // --- collectives, in a stream's order; n = size() ---

  // Of exact sums (model/machine/grid.h): t [rows, cols], fp64, becomes the sum over all ranks,
  // rounded once to fp32, and only that travels to all, in half the bytes; alone it stays as it is.
  // scratch: at least scratch_size(t.size()) elements, fp64, contents lost.
  void all_reduce(Stream& stream, const Tensor& t, const Tensor& scratch);
  int64_t scratch_size(int64_t elements) const;
  // mine [rows, cols] of rank r becomes the r-th part of all [n * rows, cols]; mine may be that
  // part.
  void all_gather(Stream& stream, const Tensor& mine, const Tensor& all);
  // Rows send_offsets[r] .. send_offsets[r+1]-1 of `send` go to rank r, rows recv_offsets[r] ..
  // recv_offsets[r+1]-1 of `recv` come from it. Offsets: n+1 entries each, ascending, copied. cols
  // and dtype are equal everywhere.
  void all_to_all_v(Stream& stream, const Tensor& send, std::span<const int64_t> send_offsets,
      const Tensor& recv, std::span<const int64_t> recv_offsets);

  // --- host values: block ---

  void send(std::span<const std::byte> bytes, int peer, Tag tag);
  void recv(std::span<std::byte> bytes, int peer, Tag tag);
  // everyone's bytes, by rank; lengths may differ
  std::vector<std::string> gather(const std::string& mine);
  template <class T>  // T: trivially copyable
  std::vector<std::vector<T>> gather_vectors(const std::vector<T>& mine);
  template <class T> std::vector<T> gather_values(const T& mine);
  void barrier() { gather(std::string()); }
  // Throws UsageError naming `what`, two ranks and their texts where not all ranks hold the same
  // text.
  void require_same(const std::string& what, const std::string& text);

 private:
  friend class CommStream;
  friend class Channels;
  using PartOf = std::function<Bytes(int rank)>;  // of this group
  Comm(Transport& transport, std::vector<int> ranks, uint32_t id);
  Request post(bool send, Stream* after, Bytes memory, int peer, Tag tag);
  void exchange(Stream* stream, const char* name, const PartOf& send, const PartOf& recv);

  Transport* transport_;
  std::vector<int> ranks_;  // of the world
  int rank_;
  uint32_t id_;          // 0: the world
  uint32_t groups_ = 0;  // made from the world so far
  uint32_t collectives_ = 0;
};

template <class T> std::vector<std::vector<T>> Comm::gather_vectors(const std::vector<T>& mine) {
  std::vector<std::vector<T>> all;
  for (const std::string& bytes :
      gather(std::string(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(T)))) {
    DUET_CHECK(bytes.size() % sizeof(T) == 0, "gather: expected values of ", sizeof(T),
        " bytes, found ", bytes.size());
    all.emplace_back(bytes.size() / sizeof(T));
    if (!bytes.empty()) memcpy(all.back().data(), bytes.data(), bytes.size());
  }
  return all;
}

template <class T> std::vector<T> Comm::gather_values(const T& mine) {
  std::vector<T> all;
  for (const std::vector<T>& one : gather_vectors(std::vector<T>{mine})) all.push_back(one.at(0));
  return all;
}

}  // namespace duet
