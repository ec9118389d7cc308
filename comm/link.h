// An emulated interconnect: the local transport's messages take the time that a cluster's links
// would take.
//
//   --link intra=160GB/s,inter=40GB/s,latency=5us --ranks-per-node 8
//
// The copy is made as ever, but the message arrives only when its links let it: the waiting that a
// schedule must hide is there, on one machine.
//
// THE MODEL. Each rank has one link to the network, full duplex: an outgoing and an incoming
// direction. A message of b bytes needs b / bandwidth seconds, in which it has the sender's
// outgoing and the receiver's incoming direction to itself; the bandwidth is `intra` between ranks
// of a node, `inter` between nodes. It starts when both sides have posted, takes the time that both
// directions have free, earliest first, in pieces where messages that came before leave gaps (as
// packets would), and arrives `latency` after its last piece. Both sides then have it: a send is
// done when its message has arrived.
//
// On a GPU, which alone knows when its buffers are ready, the GPU keeps the times (gpu_link.h), and
// gaps are not filled.
//
// Since it is time that is looked at, each rank then keeps to cores of its own, if there are enough
// (ranks.cpp).
//
// Not emulated: what a message costs the processor (on a real machine a network card copies; here
// whoever posts second), nor links faster than that copy. Host values, a few bytes, travel as all
// else does.
// Read next: link.cpp, then local.cpp, which asks for each message's arrival, and Transport::wait,
// which waits for it.
#pragma once
#include <chrono>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace duet {

using Time = std::chrono::steady_clock::time_point;

struct LinkModel {
  // bytes per second and direction, within a node
  double intra = std::numeric_limits<double>::infinity();
  double inter = std::numeric_limits<double>::infinity();  // between nodes
  double latency = 0;                                      // seconds
  // node = rank of the world / ranks_per_node; 0: all share one node
  int ranks_per_node = 0;

  bool emulated() const;  // false: messages take what they take
  bool same_node(int a, int b) const {
    return ranks_per_node == 0 || a / ranks_per_node == b / ranks_per_node;
  }
  // for which a message has either direction
  std::chrono::nanoseconds duration(int from, int to, int64_t bytes) const;
  std::chrono::nanoseconds delay() const;  // the latency
  // "160 GB/s within a node, 40 GB/s between nodes, latency 5 us", for people
  std::string text() const;
};

// text: empty, or some of intra=, inter= (a number with GB/s, MB/s, KB/s or B/s, powers of 1000, at
// least 1KB/s) and latency= (with s, ms, us or ns, at most 1s), with commas between; what is not
// named costs no time. Throws UsageError.
LinkModel parse_link(const std::string& text);

// The links of all ranks of a process. Any thread may call it.
class Links {
 public:
  Links(const LinkModel& model, int ranks)
      : model_(model), out_(size_t(ranks)), in_(size_t(ranks)) {}
  // A message of `bytes` may leave rank `from` for rank `to` at `now`; returns when it arrives.
  Time send(int from, int to, int64_t bytes, Time now);

 private:
  // of one direction of one link: begin and end of the times that messages have it
  using Taken = std::map<Time, Time>;
  const LinkModel model_;
  std::mutex mutex_;
  Time now_;                     // the latest `now`; what ended before it is forgotten
  std::vector<Taken> out_, in_;  // [ranks]
};

}  // namespace duet
