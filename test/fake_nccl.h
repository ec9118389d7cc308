// A stand-in for NCCL, for ranks that are threads with FakeGpus: what comm/nccl.cpp calls, by host
// memory copies. Like the real one it matches the sends and receives between two ranks of a
// communicator by order, does a communicator's operations one after the other in the order in which
// they were called, holds a stream until the other side is there, and reports failures late, by
// async_error. Unlike it, it notices misuse: sides of unequal size, messages without another side
// at the end, calls of an aborted communicator.
#pragma once
#include "comm/nccl.h"

namespace duet::fake_nccl {

// All that the stand-in holds against its users since the last call; empty is good.
std::vector<std::string> misuse();
int live_communicators();

const NcclApi& api();             // every thread has a GPU of its own
const NcclApi& api_of_one_gpu();  // all threads share one
void break_next_operation();      // the next one ends in an error, reported late

}  // namespace duet::fake_nccl
