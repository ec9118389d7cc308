// Executor: carries out one rank's list of a schedule on the rank's stages.
//
// It knows no schedule by name: it reads actions, keeps what they make until it is needed, posts
// the messages where the list says and waits for one only when an action needs it. Messages are
// asynchronous and tagged with (kind, sender's stage, microbatch), so none queues behind another.
// Used by one thread, the rank's. Read next: trainer.h.
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

  // schedule: only its placement is read here. pipeline: the group of the pp ranks, numbered by pp
  // rank. overlap: whether the chunks of a pair are interleaved (overlap.h), or run one after the
  // other.
  Executor(const Schedule& schedule, Comm& pipeline, const Context& context, Stages& stages,
      bool overlap);

  // Runs a list with its sends and receives (add_comms.h). tokens(m): the microbatch's tokens,
  // asked by first and last stages. A list without backwards leaves activations: the caller drops
  // them.
  void run(std::span<const Action> actions, const std::function<Microbatch(int m)>& tokens);

  double waited() const { return waited_; }  // seconds the last run stood still for messages

 private:
  // what an action made or needs: F or B, stage, microbatch
  using Key = std::tuple<Kind, int, int>;
  struct Message {
    Buf data;  // [tokens, d_model]
    Request request;
  };
  void act(const Action& a, const std::function<Microbatch(int m)>& tokens);
  void forward(const Action& a, const std::function<Microbatch(int m)>& tokens);
  void backward(const Action& a);
  void pair(const Action& a, const std::function<Microbatch(int m)>& tokens);
  bool first(const Action& a) const { return a.stage == schedule_.first_stage(a.microbatch); }
  bool last(const Action& a) const { return a.stage == schedule_.last_stage(a.microbatch); }
  void send(const Action& a);
  void receive(const Action& a);
  Buf take(Kind kind, int stage, int microbatch, int from_stage);

  const Schedule& schedule_;
  Comm& pipeline_;
  const Context& context_;
  Stages& stages_;
  bool overlap_;
  std::map<Key, Buf> made_;          // by the stage that made it
  std::map<Key, Message> received_;  // by the stage that made it
  std::list<Message> sending_;
  double waited_ = 0;
};

}  // namespace duet
