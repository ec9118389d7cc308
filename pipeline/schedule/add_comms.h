// Adds the messages to a schedule, and runs them.
//
// A message carries a forward's output to the rank of the stage after, or a backward's input
// gradient to the rank of the stage before; where both stages are on one rank there is none. A SEND
// stands right after the action that makes the data; a RECV at least one action ahead of the one
// that needs it, so that the transfer has that long to happen. Both only *post*: the rank goes on
// and waits at the action that needs the data.
//
// Messages from rank p to rank q share one channel and are received in the order in which p sends
// them, whatever order q needs them in: a channel of a transport is first in, first out (an NCCL
// communicator's stream is).
// Read next: checker.h.
#pragma once
#include <vector>

#include "pipeline/schedule/run_list.h"

namespace duet {

// Requires a schedule that run_list gets through. The result has the same compute actions in the
// same order.
Schedule add_comms(const Schedule& compute_only);

// The other end of a send or receive: the rank it goes to or comes from.
int peer_rank(const Schedule& schedule, const Action& comm);

// Runs a schedule with messages, without time, with rendezvous semantics: a message is transferred
// when it is next at both ends of its channel. (One queue for everything a rank sends and receives,
// a single comm stream, would deadlock on DualPipe.) Returns the ranks that are stuck: at the
// action whose message is `missing` (as its RECV), or at a message that was posted and never met
// its other half.
std::vector<Stuck> run_comms(const Schedule& with_comms);

}  // namespace duet
