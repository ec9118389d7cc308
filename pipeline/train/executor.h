// Executor: carries out one rank's list of a schedule on the rank's stages.
//
// It knows no schedule by name: it reads actions, keeps what they make until it is needed, posts
// the messages where the list says and waits for one only when an action needs it. Messages are
// asynchronous and tagged with (kind, sender's stage, microbatch), so none queues behind another.
// Used by one thread, the rank's.
// Read next: trainer.h.
#pragma once
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <span>

#include "comm/comm.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/train/stage.h"

namespace duet {

class Executor {
 public:
  using Stages = std::map<int, std::unique_ptr<Stage>>;  // by virtual stage, those of this rank
  using Tokens = std::function<Microbatch(int m)>;

  // schedule: only its placement is read here. pipeline: the group of the pp ranks, numbered by pp
  // rank. overlap: whether the chunks of a pair are interleaved (pairs.h), or run one after the
  // other.
  Executor(const Schedule& schedule, Comm& pipeline, const Context& context, Stages& stages,
      bool overlap);

  // Runs a list with its sends and receives (add_comms.h). tokens(m): the microbatch's tokens,
  // asked by first and last stages. In a list without backwards a forward is freed when it is done.
  // give_up is asked before each action: once it says yes nothing more is computed, and
  // messages flow with whatever is in them, so that no other rank waits for ever. The stages are
  // then fit for nothing but keeping their parameters. Not where experts are spread over ranks,
  // which exchange tokens while they compute. Returns whether it gave up.
  bool run(std::span<const Action> actions, const Tokens& tokens,
      const std::function<bool()>& give_up = {});

  // The fraction of the last run for which the compute stream waited for messages; once it is
  // synchronized.
  double idle() const;

 private:
  struct Result {
    Buf data;         // [tokens, d_model]
    Request request;  // where it is a message
  };
  void act(const Action& a);
  void pair(const Action& a);
  void pretend(const Action& a);
  void forward(const Action& a);
  void backward(const Action& a);
  Microbatch tokens(const Action& a) const;
  std::unique_ptr<Event> now() const;
  Buf take(Tag::Kind kind, const Action& a);
  void keep(Tag::Kind kind, const Action& a, Buf result);
  void send(Tag::Kind kind, const Action& a);
  void receive(Tag::Kind kind, const Action& a);

  const Schedule& schedule_;
  Comm& pipeline_;
  const Context& context_;
  Stages& stages_;
  bool overlap_, forward_only_ = false;
  Tokens tokens_;
  // made here and not used yet, or awaited; by who makes it: kind, stage, microbatch
  std::map<std::tuple<Tag::Kind, int, int>, Result> results_;
  std::list<Result> sending_;
  // on the compute stream: of the whole run, and of each wait for a message
  using Span = std::pair<std::unique_ptr<Event>, std::unique_ptr<Event>>;
  Span whole_;
  std::vector<Span> waits_;
};

}  // namespace duet
