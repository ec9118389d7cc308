// See trace.h.  Each rank prints its own events; rank 0 joins the texts.
#include "pipeline/insight/trace/trace.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string_view>

#include "model/base/clock.h"
#include "pipeline/checkpoint/durable.h"

namespace duet {
namespace {

using namespace std::string_view_literals;

constexpr int kRounds = 32;  // of stamps
constexpr std::string_view kTracks[] = {"step", "actions", "compute", "comm", "wait"};

int thread_of(std::string_view track) {
  const auto* found = std::ranges::find(kTracks, track);
  DUET_CHECK(found != std::end(kTracks), "trace: expected a known track, found '", track, "'");
  return int(found - kTracks);
}

bool receives(const Activity& activity) {
  return activity.name == "RECV_F"sv || activity.name == "RECV_B"sv;
}

// Which message a SEND or RECV is about, one name on both sides: step, pipeline, direction,
// sender's stage, microbatch.
std::string message_of(const Activity& m, int64_t step, int pipeline) {
  const char direction = m.name[5];
  const int sender = receives(m) ? m.stage + (direction == 'F' ? -1 : 1) : m.stage;
  return cat(step, '.', pipeline, direction, sender, '.', m.microbatch);
}

Json metadata(int rank, const char* name, const Json& args) {
  return Json::object({{"ph", "M"}, {"pid", rank}, {"name", name}, {"args", args}});
}

Json to_json(const Overlap& o) {
  return Json::object(
      {{"span_ms", ms(o.span)}, {"compute_ms", ms(o.compute)}, {"communication_ms", ms(o.comm)},
          {"covered_ms", ms(o.covered)}, {"exposed_ms", ms(o.exposed())}});
}

}  // namespace

ClockOffset clock_offset(Comm& world, const std::function<int64_t()>& now) {
  struct Stamp {
    int64_t sent, received;  // when this round's stamp was made, and when the round before was done
  };
  int64_t least = INT64_MIN, most = INT64_MAX;
  Stamp mine{0, 0};
  for (int round = 0; round < kRounds; ++round) {
    const int64_t sent_before = mine.sent;
    mine.sent = now();
    const Stamp zero = world.gather_values(mine)[0];
    mine.received = now();
    // rank 0's stamp was sent before it was here
    most = std::min(most, mine.received - zero.sent);
    // and so was this rank's
    if (round > 0) least = std::max(least, sent_before - zero.received);
  }
  if (world.rank() == 0) return {};
  if (least <= 0 && most >= 0) return {0, std::max(-least, most)};
  return {least + (most - least) / 2, (most - least + 1) / 2};
}

// --- collecting ----------------------------------------------------------------------------------

Trace::Trace(Comm& world, const Layout& layout, const Options& options)
    : world_(world), layout_(layout), options_(options) {}

bool Trace::records(int64_t step) const {
  return !options_.file.empty() && step >= options_.first_step && step <= options_.last_step;
}

MeasuredOverlap Trace::add(int64_t step, const Recorder& recorder) {
  std::map<std::string_view, std::vector<Interval>> tracks;
  std::vector<Interval> pairs;
  for (const Recorder::Entry& e : recorder.entries()) {
    e.end->synchronize();
    const Interval time{
        std::llround(e.begin->seconds() * 1e9), std::llround(e.end->seconds() * 1e9)};
    const bool blocks = e.on_compute && e.activity.track == "comm"sv;
    entries_.push_back({e.activity, step, blocks, time});
    tracks[e.activity.track].push_back(time);
    if (blocks) tracks["wait"].push_back(time);
    if (e.activity.track == "actions"sv && e.activity.name == "pair"sv) pairs.push_back(time);
  }
  const Times compute = without(merged(tracks["compute"]), merged(tracks["wait"])),
              comm = merged(tracks["comm"]);
  const MeasuredOverlap mine{overlap_within(merged(tracks["step"]), compute, comm),
      overlap_within(merged(pairs), compute, comm)};
  measured_ += mine;
  steps_.push_back(step);

  MeasuredOverlap sum;
  for (const MeasuredOverlap& m : world_.gather_values(mine)) sum += m;
  if (step == options_.last_step) write();
  return sum;
}

// --- the file ------------------------------------------------------------------------------------

// This rank's part of the file, each event after a comma. Times are microseconds from `origin` on
// this rank's clock.
std::string Trace::events(int64_t origin) const {
  const int rank = world_.rank();
  std::string out;
  const auto add = [&](const Json& event) { out += ",\n" + event.dump(); };
  const std::string name =
      cat("rank ", rank, " (dp ", layout_.dp_rank(rank), ", pp ", layout_.pp_rank(rank), ")");
  add(metadata(rank, "process_name", Json::object({{"name", name}})));
  add(metadata(rank, "process_sort_index", Json::object({{"sort_index", rank}})));
  for (int i = 0; i < int(std::size(kTracks)); ++i) {
    add(metadata(rank, "thread_name", Json::object({{"name", kTracks[i]}})).set("tid", i));
    add(metadata(rank, "thread_sort_index", Json::object({{"sort_index", i}})).set("tid", i));
  }
  const auto message = [&](const Entry& e) {
    return message_of(e.activity, e.step, layout_.dp_rank(rank));
  };
  // The end of an arrow, at a time in the slice that it belongs to.
  const auto arrow = [&](const Entry& e, int64_t ns) {
    Json j = Json::object({{"ph", receives(e.activity) ? "f" : "s"}, {"pid", rank},
        {"tid", thread_of(e.activity.track)}, {"ts", us(ns)}, {"name", "message"},
        {"cat", "message"}, {"id", message(e)}});
    add(receives(e.activity) ? j.set("bp", "e") : j);
  };
  std::set<std::string> waited;  // messages
  for (const Entry& e : entries_)
    if (receives(e.activity) && e.activity.track == "wait"sv) waited.insert(message(e));

  for (const Entry& e : entries_) {
    const Activity& m = e.activity;
    const int64_t begin = e.time.begin - origin, ns = e.time.end - e.time.begin;
    Json args = Json::object({{"step", e.step}});
    if (m.stage >= 0) args.set("stage", m.stage);
    if (m.microbatch >= 0) args.set("microbatch", m.microbatch);
    if (m.layer >= 0) args.set("layer", m.layer);
    if (m.bytes > 0) args.set("bytes", m.bytes);
    if (m.layer >= 0 && m.track == "comm"sv)  // an all-to-all: among whom
      args.set("group",
          format("pp %d, ep group %d", layout_.pp_rank(rank), layout_.dp_rank(rank) / layout_.ep));
    if (e.blocks) args.set("blocks", true);
    add(Json::object({{"ph", "X"}, {"pid", rank}, {"tid", thread_of(m.track)}, {"ts", us(begin)},
        {"dur", us(ns)}, {"name", m.name}, {"cat", m.track}, {"args", args}}));
    const bool action = m.track == "actions"sv;
    if (action && std::string_view(m.name).starts_with("SEND_")) arrow(e, begin);
    if (receives(m) && (!action || !waited.contains(message(e))))
      arrow(e, begin + std::max<int64_t>(0, ns - 1));  // the last nanosecond still in it
  }
  return out;
}

void Trace::write() {
  const ClockOffset clock =
      options_.one_clock ? ClockOffset() : clock_offset(world_, nanoseconds_now);
  int64_t begin = INT64_MAX;
  for (const Entry& e : entries_) begin = std::min(begin, e.time.begin);
  const std::vector<Head> heads =
      world_.gather_values(Head{begin - clock.ahead, int64_t(entries_.size()), clock, measured_});
  MeasuredOverlap sum;
  int64_t origin = INT64_MAX, count = 0, error = 0;
  Json ranks = Json::array();
  for (const Head& h : heads) {
    sum += h.measured;
    origin = std::min(origin, h.begin);
    count += h.events;
    error = std::max(error, h.clock.error);
    ranks.push(
        Json::object({{"steps", to_json(h.measured.steps)}, {"pairs", to_json(h.measured.pairs)}}));
  }
  const int n = world_.size();
  lines_ = {cat("trace  ", options_.file, ": steps ", steps_.front(), " to ", steps_.back(), ", ",
      count, " events of ", n, " ranks",
      options_.one_clock ? "" : cat(", clocks within ", (error + 999) / 1000, " us"),
      "; open it at ui.perfetto.dev")};
  if (sum.pairs.span > 0) lines_.push_back("pairs  mean of ranks: " + overlap_line(sum.pairs, n));
  lines_.push_back("steps  mean of ranks: " + overlap_line(sum.steps, n));
  const std::vector<std::string> texts = world_.gather(events(origin + clock.ahead));
  if (world_.rank() != 0) return;
  std::string text("{\"displayTimeUnit\":\"ms\",\"otherData\":" +
      Json::object(
          {{"program", "duet"}, {"first_step", steps_.front()}, {"last_step", steps_.back()},
              {"clock_error_us", us(error)}, {"ranks", ranks}})
          .dump() +
      ",\n\"traceEvents\":[");
  // no comma before the first
  for (size_t r = 0; r < texts.size(); ++r) text += std::string_view(texts[r]).substr(r == 0);
  text += "\n]}\n";
  write_file(options_.file, text);
}

std::vector<std::string> Trace::finish() {
  if (options_.file.empty()) return {};
  if (lines_.empty() && !steps_.empty()) write();
  if (!lines_.empty()) return lines_;
  return {cat("trace  nothing was recorded: the run did not reach step ", options_.first_step)};
}

}  // namespace duet
