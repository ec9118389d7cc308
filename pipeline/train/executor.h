// Executor: carries out one rank's list of a schedule on the rank's stages.
//
// It knows no schedule by name: it reads actions, keeps what they make until it is needed, posts
// the messages where the list says and waits for one only when an action needs it. Messages are
// asynchronous and tagged with (kind, sender's stage, microbatch), so none queues behind another.
// Used by one thread, the rank's.
// Read next: pairs.h.
#pragma once
#include <functional>
#include <list>
#include <map>
#include <span>

#include "comm/comm.h"
#include "data/batch.h"
#include "model/context.h"
#include "pipeline/schedule/schedule.h"

namespace duet {

class Executor {
 public:
  using Tokens = std::function<Microbatch(int m)>;
  // Of F: x, and the microbatch's tokens where the stage is its first or last one. Of I and B: dy.
  // Of an overlapped pair: those of both. [tokens, d_model]; nothing where a pipeline begins
  struct Given {
    Buf x, dy;
    Microbatch tokens;
    bool forward_only = false;  // F keeps nothing for a backward, for none comes
  };
  struct Made {
    Buf y, dx;  // likewise; where a pipeline ends it may be nothing and is dropped
  };
  // What a rank's stages do: those of the model compute (pairs.h), rehearsed ones wait
  // (rehearse.h).
  using Stages = std::function<Made(const Action& compute, Given given)>;

  // schedule: only its placement is read here. pipeline: the group of the pp ranks, numbered by pp
  // rank. overlap: whether a pair is one action, or its F and then its B.
  Executor(const Schedule& schedule, Comm& pipeline, const Context& context, Stages stages,
      bool overlap);

  // Runs a list with its sends and receives (add_comms.h). tokens(m): the microbatch's tokens,
  // asked for first and last stages. In a list without backwards a forward is freed when it is
  // done. give_up is asked before each computation: once it says yes nothing more is computed, and
  // messages flow with whatever is in them, so that no other rank waits for ever. The stages are
  // then fit for nothing but keeping their parameters. Ranks that exchange tokens while they
  // compute must be told the same. Returns whether it gave up.
  bool run(std::span<const Action> actions, const Tokens& tokens,
      const std::function<bool()>& give_up = {});

  // The fraction of the last run for which the compute stream waited for pipeline messages; once it
  // is synchronized.
  double idle() const;

 private:
  struct Result {
    Buf data;         // [tokens, d_model]
    Request request;  // where it is a message
  };
  void act(const Action& a);
  void compute(const Action& a);
  Made pretend(Given given) const;
  std::unique_ptr<Event> now() const;
  Buf take(Tag::Kind kind, const Action& a);
  void keep(Tag::Kind kind, const Action& a, Buf result);
  void send(Tag::Kind kind, const Action& a);
  void receive(Tag::Kind kind, const Action& a);

  const Schedule& schedule_;
  Comm& pipeline_;
  const Context& context_;
  Stages stages_;
  bool overlap_, gave_up_ = false, forward_only_ = false;
  Tokens tokens_;
  // made here and not used yet, or awaited; by who makes it: kind, stage, microbatch
  std::map<std::tuple<Tag::Kind, int, int>, Result> results_;
  std::list<Result> sending_;
  // on the compute stream: of the whole run, and of each wait for a message
  using Stretch = std::pair<std::unique_ptr<Event>, std::unique_ptr<Event>>;
  Stretch whole_;
  std::vector<Stretch> waits_;
};

}  // namespace duet
