// See executor.h.
#include "pipeline/train/executor.h"

#include <algorithm>

#include "pipeline/schedule/add_comms.h"
#include "pipeline/train/pairs.h"

namespace duet {

Executor::Executor(
    const Schedule& schedule, Comm& pipeline, const Context& context, Stages& stages, bool overlap)
    : schedule_(schedule), pipeline_(pipeline), context_(context), stages_(stages),
      overlap_(overlap) {}

bool Executor::run(
    std::span<const Action> actions, const Tokens& tokens, const std::function<bool()>& give_up) {
  waits_.clear();
  whole_.first = now();
  tokens_ = tokens;
  forward_only_ = std::all_of(actions.begin(), actions.end(),
      [](const Action& a) { return a.is_comm() || (a.kind == Kind::F && !a.overlapped()); });
  bool gave_up = false;
  for (const Action& a : actions) {
    gave_up = gave_up || (give_up && give_up());
    gave_up && !a.is_comm() ? pretend(a) : act(a);
    sending_.remove_if([](const Result& r) { return r.request.done(); });
  }
  for (const Result& r : sending_) r.request.wait();
  sending_.clear();
  whole_.second = now();
  DUET_CHECK(results_.empty(), "end of a schedule: expected every result used, found ",
      results_.size(), " left over");
  return gave_up;
}

std::unique_ptr<Event> Executor::now() const {
  std::unique_ptr<Event> event = context_.device.make_event(true);
  context_.stream().record(*event);
  return event;
}

double Executor::idle() const {
  const auto seconds = [](const Span& s) { return s.second->seconds() - s.first->seconds(); };
  double waited = 0;
  for (const Span& wait : waits_) waited += seconds(wait);
  return waited / seconds(whole_);
}

void Executor::act(const Action& a) {
  const char* name = a.overlapped() ? "pair" : kind_name(a.kind);
  const Scope scope(context_.recorder, context_.stream(), {name, "actions", a.stage, a.microbatch});
  if (a.overlapped()) return pair(a);
  switch (a.kind) {
    case Kind::F: return forward(a);
    case Kind::I: return backward(a);
    case Kind::W: return stages_.at(a.stage)->backward_weight(a.microbatch);
    case Kind::B: backward(a); return stages_.at(a.stage)->backward_weight(a.microbatch);
    case Kind::SEND_F: return send(Tag::F, a);
    case Kind::SEND_B: return send(Tag::B, a);
    case Kind::RECV_F: return receive(Tag::F, a);
    case Kind::RECV_B: return receive(Tag::B, a);
  }
}

Microbatch Executor::tokens(const Action& a) const {
  const StageOptions& stage = stages_.at(a.stage)->options();
  return stage.embedding || stage.head ? tokens_(a.microbatch) : Microbatch();
}

void Executor::forward(const Action& a) {
  Buf x = take(Tag::F, a);
  keep(Tag::F, a, stages_.at(a.stage)->forward(a.microbatch, std::move(x), tokens(a)));
  if (forward_only_) stages_.at(a.stage)->drop(a.microbatch);
}

void Executor::backward(const Action& a) {
  keep(Tag::B, a, stages_.at(a.stage)->backward_input(a.microbatch, take(Tag::B, a)));
}

void Executor::pair(const Action& both) {
  const Action f{Kind::F, both.stage, both.microbatch}, b{Kind::B, both.b_stage, both.b_microbatch};
  if (!overlap_) {
    forward(f);
    backward(b);
    return stages_.at(b.stage)->backward_weight(b.microbatch);
  }
  Buf x = take(Tag::F, f), dy = take(Tag::B, b);
  const Microbatch batch = tokens(f);
  PairResult result = overlapped_pair({*stages_.at(f.stage), f.microbatch, std::move(x), batch},
      {*stages_.at(b.stage), b.microbatch, std::move(dy)});
  keep(Tag::F, f, std::move(result.y));
  keep(Tag::B, b, std::move(result.dx));
}

// Passes on what came in, or whatever is in memory where nothing did.
void Executor::pretend(const Action& a) {
  for_parts(a, [&](const Action& part) {
    if (part.kind == Kind::W) return;
    const Tag::Kind kind = part.kind == Kind::F ? Tag::F : Tag::B;
    const StageOptions& o = stages_.at(part.stage)->options();
    Buf flow = take(kind, part);
    if (!flow)
      flow = context_.device.buffer(
          context_.tokens(), context_.config.d_model, context_.dtype, Use::messages);
    if (!(kind == Tag::F ? o.head : o.embedding)) keep(kind, part, std::move(flow));
  });
}

// --- results -------------------------------------------------------------------------------------

// Who makes what `stage` works on: F comes from the stage before, B from the next one.
static int source(Tag::Kind kind, int stage) { return kind == Tag::F ? stage - 1 : stage + 1; }

void Executor::keep(Tag::Kind kind, const Action& a, Buf result) {
  if (result) results_[{kind, a.stage, a.microbatch}].data = std::move(result);
}

// What a's stage works on: nothing where the pipeline begins. A message is waited for now.
Buf Executor::take(Tag::Kind kind, const Action& a) {
  const StageOptions& stage = stages_.at(a.stage)->options();
  if (kind == Tag::F ? stage.embedding : stage.head) return Buf();
  const int from = source(kind, a.stage);
  auto found = results_.extract({kind, from, a.microbatch});
  DUET_CHECK(found, "stage ", a.stage, ", microbatch ", a.microbatch,
      ": expected the result of stage ", from, ", found none");
  if (const Request& request = found.mapped().request) {
    const Scope scope(context_.recorder, context_.stream(),
        {kind == Tag::F ? "RECV_F" : "RECV_B", "wait", a.stage, a.microbatch});
    Span wait{now(), nullptr};
    pipeline_.wait(context_.stream(), request);
    wait.second = now();
    waits_.push_back(std::move(wait));
  }
  return std::move(found.mapped().data);
}

void Executor::send(Tag::Kind kind, const Action& a) {
  auto made = results_.extract({kind, a.stage, a.microbatch});
  DUET_CHECK(made, to_string(a), ": expected its result, found none");
  Result& result = sending_.emplace_back(std::move(made.mapped()));
  result.request = pipeline_.isend(
      context_.stream(), result.data, peer_rank(schedule_, a), {kind, a.stage, a.microbatch});
}

void Executor::receive(Tag::Kind kind, const Action& a) {
  const int from = source(kind, a.stage);
  Result& result = results_[{kind, from, a.microbatch}];
  result.data = context_.device.buffer(
      context_.tokens(), context_.config.d_model, context_.dtype, Use::messages);
  result.request = pipeline_.irecv(
      context_.stream(), result.data, peer_rank(schedule_, a), {kind, from, a.microbatch});
}

}  // namespace duet
