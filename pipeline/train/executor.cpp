// See executor.h.
#include "pipeline/train/executor.h"

#include "model/base/clock.h"
#include "pipeline/schedule/add_comms.h"
#include "pipeline/train/pairs.h"

namespace duet {

Executor::Executor(
    const Schedule& schedule, Comm& pipeline, const Context& context, Stages& stages, bool overlap)
    : schedule_(schedule), pipeline_(pipeline), context_(context), stages_(stages),
      overlap_(overlap) {}

void Executor::run(
    std::span<const Action> actions, const std::function<Microbatch(int m)>& tokens) {
  waited_ = 0;
  for (const Action& a : actions) {
    act(a, tokens);
    sending_.remove_if([](const Message& m) { return m.request.done(); });
  }
  for (const Message& m : sending_) m.request.wait();
  sending_.clear();
  DUET_CHECK(made_.empty() && received_.empty(),
      "end of a schedule: expected every result used, found ", made_.size() + received_.size(),
      " left over");
}

void Executor::act(const Action& a, const std::function<Microbatch(int m)>& tokens) {
  const Scope scope(context_.recorder, context_.stream(),
      {.name = a.overlapped() ? "pair" : kind_name(a.kind),
          .lane = "actions",
          .stage = a.stage,
          .microbatch = a.microbatch});
  if (a.overlapped()) return pair(a, tokens);
  switch (a.kind) {
    case Kind::F: return forward(a, tokens);
    case Kind::I: return backward(a);
    case Kind::W: return stages_.at(a.stage)->backward_weight(a.microbatch);
    case Kind::B: backward(a); return stages_.at(a.stage)->backward_weight(a.microbatch);
    case Kind::SEND_F:
    case Kind::SEND_B: return send(a);
    case Kind::RECV_F:
    case Kind::RECV_B: return receive(a);
  }
}

void Executor::forward(const Action& a, const std::function<Microbatch(int m)>& tokens) {
  Buf x = first(a) ? Buf() : take(Kind::F, a.stage, a.microbatch, a.stage - 1);
  Buf y = stages_.at(a.stage)->forward(
      a.microbatch, std::move(x), first(a) || last(a) ? tokens(a.microbatch) : Microbatch());
  if (!last(a)) made_[{Kind::F, a.stage, a.microbatch}] = std::move(y);
}

void Executor::backward(const Action& a) {
  Buf dy = last(a) ? Buf() : take(Kind::B, a.stage, a.microbatch, a.stage + 1);
  Buf dx = stages_.at(a.stage)->backward_input(a.microbatch, std::move(dy));
  if (!first(a)) made_[{Kind::B, a.stage, a.microbatch}] = std::move(dx);
}

void Executor::pair(const Action& both, const std::function<Microbatch(int m)>& tokens) {
  const Action f{Kind::F, both.stage, both.microbatch}, b{Kind::B, both.b_stage, both.b_microbatch};
  if (!overlap_) {
    forward(f, tokens);
    backward(b);
    return stages_.at(b.stage)->backward_weight(b.microbatch);
  }
  Buf x = first(f) ? Buf() : take(Kind::F, f.stage, f.microbatch, f.stage - 1);
  Buf dy = last(b) ? Buf() : take(Kind::B, b.stage, b.microbatch, b.stage + 1);
  const Microbatch batch = first(f) || last(f) ? tokens(f.microbatch) : Microbatch();
  PairResult result = overlapped_pair({*stages_.at(f.stage), f.microbatch, std::move(x), batch},
      {*stages_.at(b.stage), b.microbatch, std::move(dy)});
  if (!last(f)) made_[{Kind::F, f.stage, f.microbatch}] = std::move(result.y);
  if (!first(b)) made_[{Kind::B, b.stage, b.microbatch}] = std::move(result.dx);
}

// What `from_stage` made for `stage`: on this rank, or in a message that is waited for now.
Buf Executor::take(Kind kind, int stage, int microbatch, int from_stage) {
  const Key key{kind, from_stage, microbatch};
  if (auto made = made_.extract(key)) return std::move(made.mapped());
  auto message = received_.extract(key);
  DUET_CHECK(message, "stage ", stage, ", microbatch ", microbatch,
      ": expected the result of stage ", from_stage, ", found none");
  const Scope scope(context_.recorder, context_.stream(),
      {.name = kind_name(kind == Kind::F ? Kind::RECV_F : Kind::RECV_B),
          .lane = "wait",
          .stage = stage,
          .microbatch = microbatch});
  const double begin = seconds_now();
  pipeline_.wait(context_.stream(), message.mapped().request);
  waited_ += seconds_now() - begin;
  return std::move(message.mapped().data);
}

void Executor::send(const Action& a) {
  const Kind kind = a.kind == Kind::SEND_F ? Kind::F : Kind::B;
  auto made = made_.extract({kind, a.stage, a.microbatch});
  DUET_CHECK(made, to_string(a), ": expected its result, found none");
  Message message{std::move(made.mapped()), {}};
  message.request = pipeline_.isend(context_.stream(), message.data, peer_rank(schedule_, a),
      {kind == Kind::F ? Tag::F : Tag::B, a.stage, a.microbatch});
  sending_.push_back(std::move(message));
}

void Executor::receive(const Action& a) {
  const Kind kind = a.kind == Kind::RECV_F ? Kind::F : Kind::B;
  const int from = kind == Kind::F ? a.stage - 1 : a.stage + 1;
  Message message{context_.device.buffer(
                      context_.tokens(), context_.config.d_model, context_.dtype, Use::messages),
      {}};
  message.request = pipeline_.irecv(context_.stream(), message.data, peer_rank(schedule_, a),
      {kind == Kind::F ? Tag::F : Tag::B, from, a.microbatch});
  received_[{kind, from, a.microbatch}] = std::move(message);
}

}  // namespace duet
