// NCCL: how messages in GPU memory go from GPU to GPU. Not a transport of its own: host values,
// barriers and the matching of tags ride on the transport that started the ranks, threads or MPI.
//
// NCCL matches the sends and receives between two ranks by order and knows no tags. So a sender
// first announces tag and size on the host, and the receiver calls NCCL for whichever of its posted
// receives the next announcement names: both call in the sender's order, whatever order the
// receives were posted in. A receive that waits while the sender's next message is one that nobody
// has asked for is an error that names both.
//
// Each direction between two ranks has a communicator and a stream of its own, so that forward
// activations and backward gradients never queue behind one another. A receive is launched only
// when its send has been.
//
// Failing: a thread looks at all communicators and at how long what is launched has taken. When the
// rank has failed it aborts them; whoever waits for the GPU is woken, and the next call throws.
// Threads: the rank's own, but for that thread. Read next: nccl.cpp; nccl_nccl.cpp for the library
// itself.
#pragma once
#include <chrono>
#include <list>
#include <map>
#include <thread>

#include "comm/transport.h"

struct ncclComm;  // the library's own

namespace duet {

struct NcclId {
  char bytes[128];
};

// What duet uses of NCCL; tests fill it with a stand-in. The functions return NCCL's codes. With
// the communicators of `init` none blocks: kNcclInProgress means that async_error is to be asked
// until it says otherwise.
struct NcclApi {
  int (*gpu)();                      // the calling thread's current one
  void (*use_gpu)(int gpu);          // makes it the calling thread's
  std::string (*gpu_name)(int gpu);  // no other GPU's: "host, GPU 0000:1b:00.0"
  int (*get_id)(NcclId*);
  // blocks of a GPU that an operation may take
  int (*init)(ncclComm**, int ranks, const NcclId&, int rank, int max_blocks);
  int (*async_error)(ncclComm*);
  int (*send)(const void* data, size_t bytes, int peer, ncclComm*, void* cuda_stream);
  int (*recv)(void* data, size_t bytes, int peer, ncclComm*, void* cuda_stream);
  int (*group_start)();
  int (*group_end)();
  int (*finalize)(ncclComm*);
  int (*destroy)(ncclComm*);
  int (*abort)(ncclComm*);
  const char* (*error_text)(int);
};
inline constexpr int kNcclSuccess = 0, kNcclInProgress = 7;

const NcclApi& nccl_api();  // a build without NCCL: throws UsageError

class NcclLink {
 public:
  // Collective over the world: makes transport.link, its channels and the world's communicator.
  static void open(Transport& transport, Comm& world, Device& device,
      const std::vector<std::pair<int, int>>& pairs);
  ~NcclLink();  // waits until all messages are done; if the rank has failed, aborts them
  void add_group(Comm& group, uint32_t id);

  void post(Post& p);      // p.ready is recorded
  void wait(Post& p);      // until it is done, also for messages of the transport
  bool finished(Post& p);  // done, and the GPU too
  void finish(Post& p);    // waits for that
  void cancel(Post& p);

  // One NCCL group, without what the rank sends to itself. text: what it is, for people.
  void collective(Stream& stream, uint32_t group, std::span<const Leg> sends,
      std::span<const Leg> recvs, const std::string& text);

 private:
  struct Header {
    uint32_t tag = 0;
    int64_t bytes = 0;
  };
  struct Announced {
    Header header;
    std::unique_ptr<Post> post;  // of the header
  };
  struct Edge {  // one direction between this rank and another
    int peer = 0;
    ncclComm* comm = nullptr;
    std::unique_ptr<Stream> lane;
    std::list<Announced> announced;  // out: headers that the peer has not taken yet
    std::list<Post*> expected;       // in: receives for which NCCL has not been called
    // in: the header of the next message, being received while any are expected
    std::unique_ptr<Announced> next;
  };
  struct Flight {  // given to NCCL
    std::shared_ptr<Event> landed;
    std::string text;
    std::chrono::steady_clock::time_point since;
  };
  struct Operation;
  using Clock = std::chrono::steady_clock;

  NcclLink(Transport& transport, const NcclApi& api, Device& device);
  void refuse_shared_gpus(Comm& world);
  void connect(Comm& world, const std::vector<std::pair<int, int>>& pairs);
  void greet(
      Stream& stream, ncclComm* comm, const std::vector<int>& to, const std::vector<int>& from);
  ncclComm* make(int ranks, const NcclId& id, int rank, int max_blocks);
  void check(int code, const std::string& text) const;
  bool late(Clock::time_point since) const;
  void settle(std::unique_lock<std::mutex>& lock, ncclComm* comm, const std::string& text);

  void exchange_header(Announced& a, bool send, int peer, const Header& header);
  std::shared_ptr<Event> launch(Stream& stream, const Operation& op);
  static void enqueue(void* cuda_stream, int64_t, const void* op);
  bool advance(Edge& edge);
  bool advance();
  Post* claimant(const Edge& edge) const;
  Edge& edge_of(const Post& p);
  void wait_until(const std::function<bool()>& ended, const std::string& text);

  void watch();
  void look();
  void close();
  void abort_all();

  Transport& transport_;
  const NcclApi& api_;
  Device& device_;
  const int gpu_, exceptions_;
  std::map<int, Edge> out_, in_;          // by peer
  std::map<uint32_t, ncclComm*> groups_;  // by id

  // guards NCCL's communicators against the thread that may abort them, and what follows
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<ncclComm*> comms_;  // in the order in which they were made; empty once aborted
  std::list<Flight> flights_;
  bool ending_ = false;
  std::thread watcher_;
};

}  // namespace duet
