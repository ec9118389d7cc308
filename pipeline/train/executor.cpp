// See executor.h.
#include "pipeline/train/executor.h"

#include <algorithm>

#include "pipeline/schedule/add_comms.h"

namespace duet {

Executor::Executor(
    const Schedule& schedule, Comm& pipeline, const Context& context, Stages stages, bool overlap)
    : schedule_(schedule), pipeline_(pipeline), context_(context), stages_(std::move(stages)),
      overlap_(overlap) {}

bool Executor::run(
    std::span<const Action> actions, const Tokens& tokens, const std::function<bool()>& give_up) {
  waits_.clear();
  whole_.first = now();
  gave_up_ = false;
  tokens_ = tokens;
  forward_only_ = std::all_of(actions.begin(), actions.end(),
      [](const Action& a) { return a.is_comm() || (a.kind == Kind::F && !a.overlapped()); });
  for (const Action& a : actions) {
    if (!a.is_comm()) gave_up_ = gave_up_ || (give_up && give_up());
    act(a);
    sending_.remove_if([](const Result& r) { return r.request.done(); });
  }
  for (const Result& r : sending_) r.request.wait();
  sending_.clear();
  whole_.second = now();
  DUET_CHECK(results_.empty(), "end of a schedule: expected every result used, found ",
      results_.size(), " left over");
  return gave_up_;
}

std::unique_ptr<Event> Executor::now() const {
  std::unique_ptr<Event> event = context_.device.make_event(true);
  context_.stream().record(*event);
  return event;
}

double Executor::idle() const {
  const auto seconds = [](const Stretch& s) { return s.second->seconds() - s.first->seconds(); };
  double waited = 0;
  for (const Stretch& wait : waits_) waited += seconds(wait);
  return waited / seconds(whole_);
}

void Executor::act(const Action& a) {
  const char* name = a.overlapped() ? "pair" : kind_name(a.kind);
  const Scope scope(context_.recorder, context_.stream(), {name, "actions", a.stage, a.microbatch});
  if (a.is_comm()) {
    const Tag::Kind kind = is_forward_message(a.kind) ? Tag::F : Tag::B;
    return is_send(a.kind) ? send(kind, a) : receive(kind, a);
  }
  if (overlap_) return compute(a);
  for_parts(a, [&](const Action& part) { compute(part); });
}

void Executor::compute(const Action& a) {
  Given given;
  given.forward_only = forward_only_;
  for_parts(a, [&](const Action& part) {
    if (part.kind == Kind::F) {
      given.x = take(Tag::F, part);
      const int m = part.microbatch;
      if (part.stage == schedule_.first_stage(m) || part.stage == schedule_.last_stage(m))
        given.tokens = tokens_(m);
    } else if (part.kind != Kind::W) {
      given.dy = take(Tag::B, part);
    }
  });
  Made made = gave_up_ ? pretend(std::move(given)) : stages_(a, std::move(given));
  for_parts(a, [&](const Action& part) {
    if (part.kind == Kind::F)
      keep(Tag::F, part, std::move(made.y));
    else if (part.kind != Kind::W)
      keep(Tag::B, part, std::move(made.dx));
  });
}

// After giving up: passes on what came in, or whatever is in memory where nothing did.
Executor::Made Executor::pretend(Given given) const {
  return {given.x ? std::move(given.x) : context_.message(),
      given.dy ? std::move(given.dy) : context_.message()};
}

// --- results -------------------------------------------------------------------------------------

// From a stage to the next one that works on its result, in F or in B.
static int step(Tag::Kind kind) { return kind == Tag::F ? 1 : -1; }

void Executor::keep(Tag::Kind kind, const Action& a, Buf result) {
  if (!schedule_.visits(a.stage + step(kind), a.microbatch)) return;  // the pipeline ends here
  DUET_CHECK(result, to_string(a), ": expected a result, found none");
  results_[{kind, a.stage, a.microbatch}].data = std::move(result);
}

// What a's stage works on: nothing where the pipeline begins. A message is waited for now.
Buf Executor::take(Tag::Kind kind, const Action& a) {
  const int from = a.stage - step(kind);
  if (!schedule_.visits(from, a.microbatch)) return Buf();
  auto found = results_.extract({kind, from, a.microbatch});
  DUET_CHECK(found, "stage ", a.stage, ", microbatch ", a.microbatch,
      ": expected the result of stage ", from, ", found none");
  if (const Request& request = found.mapped().request) {
    const Scope scope(context_.recorder, context_.stream(),
        {kind == Tag::F ? "RECV_F" : "RECV_B", "wait", a.stage, a.microbatch});
    Stretch wait{now(), nullptr};
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
  const int from = a.stage - step(kind);
  Result& result = results_[{kind, from, a.microbatch}];
  result.data = context_.message();
  result.request = pipeline_.irecv(
      context_.stream(), result.data, peer_rank(schedule_, a), {kind, from, a.microbatch});
}

}  // namespace duet
