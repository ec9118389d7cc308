// An emulated interconnect: messages between threads take the time that a cluster's links would
// take.
//
//   --link intra=160GB/s,inter=40GB/s,latency=5us --ranks-per-node 8
//
// The copy is made as ever, but the message arrives only when its links let it: the waiting that a
// schedule must hide is there, on one machine.
//
// THE MODEL. Each rank has one link to the network, full duplex: an outgoing and an incoming
// direction. A direction serves the messages that want it one after the other, as they come, for
// bytes / bandwidth seconds each; the bandwidth is `intra` between ranks of a node, `inter` between
// nodes. A message comes when both sides have posted it and its data is ready; it wants the
// sender's outgoing and the receiver's incoming direction, each of which serves it by itself, and
// it arrives `latency` after the later of the two is through with it. So an all-to-all takes its
// busiest link's time, in whatever order its messages come. What takes no time waits for nobody.
// Both sides then have it: a send is done when its message has arrived.
//
// Since it is time that is looked at, each rank then keeps to cores of its own, if there are enough
// (ranks.cpp).
//
// Not emulated: what a message costs the processor (on a real machine a network card copies; here
// whoever posts second), nor links faster than that copy. Host values, a few bytes, travel as all
// else does.
// Read next: link_times.h.
#pragma once
#include <cstdint>
#include <limits>
#include <string>

namespace duet {

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
  // for which either direction serves a message; nanoseconds
  uint64_t duration(int from, int to, int64_t bytes) const;
  uint64_t delay() const;  // the latency; nanoseconds
  // "160 GB/s within a node, 40 GB/s between nodes, latency 5 us", for people
  std::string text() const;
};

// text: empty, or some of intra=, inter= (a number with GB/s, MB/s, KB/s or B/s, powers of 1000, at
// least 1KB/s) and latency= (with s, ms, us or ns, at most 1s), with commas between; what is not
// named costs no time. Throws UsageError.
LinkModel parse_link(const std::string& text);

}  // namespace duet
