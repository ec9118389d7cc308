// See trace.h. Each rank prints its own events; rank 0 joins the texts.
#include "pipeline/insight/trace/trace.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "model/base/clock.h"
#include "pipeline/checkpoint/durable.h"

namespace duet {

namespace {

constexpr int kRounds = 32;  // of stamps
constexpr const char* kLanes[] = {"step", "actions", "compute", "comm", "wait"};

double ms(int64_t ns) { return double(ns) * 1e-6; }

int thread_of(const char* lane) {
  for (int i = 0; i < int(std::size(kLanes)); ++i)
    if (!std::strcmp(lane, kLanes[i])) return i;
  throw Error(cat("trace: expected a known lane, found '", lane, "'"));
}

bool is_pair(const Mark& mark) {
  return !std::strcmp(mark.lane, "actions") && !std::strcmp(mark.name, "pair");
}

bool receives(const Mark& mark) {
  return !std::strcmp(mark.name, "RECV_F") || !std::strcmp(mark.name, "RECV_B");
}

// Which message a SEND or RECV is about, one number on both sides: (step, pipeline, direction,
// sender's stage, microbatch).
int64_t message_of(const Mark& m, int64_t step, int pipeline) {
  const bool forward = m.name[5] == 'F';
  const int sender = receives(m) ? m.stage + (forward ? -1 : 1) : m.stage;
  return ((((step & 0x7fff) << 10 | pipeline) << 1 | forward) << 10 | sender) << 16 | m.microbatch;
}

Json to_json(const Overlap& o) {
  return Json::object(
      {{"span_ms", ms(o.span)}, {"compute_ms", ms(o.compute)}, {"communication_ms", ms(o.comm)},
          {"covered_ms", ms(o.covered)}, {"exposed_ms", ms(o.exposed())}});
}

std::string to_text(const Overlap& sum, int ranks) {
  const double n = ranks;
  return format(
      "span %.2f ms, compute %.2f, communication %.2f, covered %.2f (%.1f%%), exposed %.2f",
      ms(sum.span) / n, ms(sum.compute) / n, ms(sum.comm) / n, ms(sum.covered) / n,
      100 * sum.fraction(), ms(sum.exposed()) / n);
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

Measured Trace::add(int64_t step, const Recorder& recorder) {
  std::map<std::string_view, std::vector<Interval>> lanes;
  std::vector<Interval> pairs;
  for (const Recorder::Entry& e : recorder.entries()) {
    e.end->synchronize();
    const Interval time{
        std::llround(e.begin->seconds() * 1e9), std::llround(e.end->seconds() * 1e9)};
    const bool blocks = e.on_compute && !std::strcmp(e.mark.lane, "comm");
    entries_.push_back({e.mark, step, blocks, time});
    lanes[e.mark.lane].push_back(time);
    if (blocks) lanes["wait"].push_back(time);
    if (is_pair(e.mark)) pairs.push_back(time);
  }
  const Activity activity{merged(lanes["compute"]), merged(lanes["comm"]), merged(lanes["wait"])};
  const Measured mine{
      overlap_within(merged(lanes["step"]), activity), overlap_within(merged(pairs), activity)};
  measured_.steps += mine.steps;
  measured_.pairs += mine.pairs;
  steps_.push_back(step);

  Measured sum;
  for (const Measured& m : world_.gather_values(mine)) {
    sum.steps += m.steps;
    sum.pairs += m.pairs;
  }
  if (step == options_.last_step) write();
  return sum;
}

// --- the file ------------------------------------------------------------------------------------

namespace {

double us(int64_t ns) { return double(ns) * 1e-3; }

Json metadata(int rank, const char* name, const Json& args) {
  return Json::object({{"ph", "M"}, {"pid", rank}, {"name", name}, {"args", args}});
}

}  // namespace

// The end of an arrow, at a time in the slice that it belongs to.
Json Trace::arrow(const Entry& e, int thread, int64_t ns) const {
  Json j = Json::object({{"ph", receives(e.mark) ? "f" : "s"}, {"pid", world_.rank()},
      {"tid", thread}, {"ts", us(ns)}, {"name", "message"}, {"cat", "message"},
      {"id", message_of(e.mark, e.step, layout_.dp_rank(world_.rank()))}});
  if (receives(e.mark)) j.set("bp", "e");
  return j;
}

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
  for (int i = 0; i < int(std::size(kLanes)); ++i) {
    add(metadata(rank, "thread_name", Json::object({{"name", kLanes[i]}})).set("tid", i));
    add(metadata(rank, "thread_sort_index", Json::object({{"sort_index", i}})).set("tid", i));
  }
  std::set<int64_t> waited;  // messages
  for (const Entry& e : entries_)
    if (receives(e.mark) && !std::strcmp(e.mark.lane, "wait"))
      waited.insert(message_of(e.mark, e.step, layout_.dp_rank(rank)));

  for (const Entry& e : entries_) {
    const Mark& m = e.mark;
    const int thread = thread_of(m.lane);
    const int64_t begin = e.time.begin - origin, ns = e.time.end - e.time.begin;
    Json args = Json::object({{"step", e.step}});
    if (m.stage >= 0) args.set("stage", m.stage);
    if (m.microbatch >= 0) args.set("microbatch", m.microbatch);
    if (m.layer >= 0) args.set("layer", m.layer);
    if (m.bytes > 0) args.set("bytes", m.bytes);
    if (e.blocks) args.set("blocks", true);
    add(Json::object({{"ph", "X"}, {"pid", rank}, {"tid", thread}, {"ts", us(begin)},
        {"dur", us(ns)}, {"name", m.name}, {"cat", m.lane}, {"args", args}}));
    const bool action = !std::strcmp(m.lane, "actions");
    if (action && !std::strncmp(m.name, "SEND_", 5)) add(arrow(e, thread, begin));
    if (receives(m) && (!action || !waited.contains(message_of(m, e.step, layout_.dp_rank(rank)))))
      // the last nanosecond that is still in it
      add(arrow(e, thread, begin + std::max<int64_t>(0, ns - 1)));
  }
  return out;
}

void Trace::write() {
  const ClockOffset clock =
      options_.one_clock ? ClockOffset() : clock_offset(world_, nanoseconds_now);
  int64_t begin = INT64_MAX;
  for (const Entry& e : entries_) begin = std::min(begin, e.time.begin);
  heads_ =
      world_.gather_values(Head{begin - clock.ahead, int64_t(entries_.size()), clock, measured_});
  int64_t origin = INT64_MAX, error = 0;
  Json ranks = Json::array();
  for (const Head& h : heads_) {
    origin = std::min(origin, h.begin);
    error = std::max(error, h.clock.error);
    ranks.push(
        Json::object({{"steps", to_json(h.measured.steps)}, {"pairs", to_json(h.measured.pairs)}}));
  }
  const std::vector<std::string> texts = world_.gather(events(origin + clock.ahead));
  if (world_.rank() != 0) return;
  FileWriter file(options_.file);
  file.write("{\"displayTimeUnit\":\"ms\",\"otherData\":" +
      Json::object(
          {{"program", "duet"}, {"first_step", steps_.front()}, {"last_step", steps_.back()},
              {"clock_error_us", us(error)}, {"ranks", ranks}})
          .dump() +
      ",\n\"traceEvents\":[");
  // no comma before the first
  for (size_t r = 0; r < texts.size(); ++r) file.write(std::string_view(texts[r]).substr(r == 0));
  file.write("\n]}\n");
  file.close();
}

std::vector<std::string> Trace::finish() {
  if (options_.file.empty()) return {};
  if (heads_.empty() && !steps_.empty()) write();
  if (heads_.empty())
    return {cat("trace  nothing was recorded: the run did not reach step ", options_.first_step)};
  Measured sum;
  int64_t events = 0, error = 0;
  for (const Head& h : heads_) {
    sum.steps += h.measured.steps;
    sum.pairs += h.measured.pairs;
    events += h.events;
    error = std::max(error, h.clock.error);
  }
  const int n = world_.size();
  std::vector<std::string> lines;
  lines.push_back(cat("trace  ", options_.file, ": steps ", steps_.front(), " to ", steps_.back(),
      ", ", events, " events of ", n, " ranks",
      options_.one_clock ? "" : cat(", clocks within ", (error + 999) / 1000, " us"),
      "; open it at ui.perfetto.dev"));
  if (sum.pairs.span > 0) lines.push_back("pairs  mean of ranks: " + to_text(sum.pairs, n));
  lines.push_back("steps  mean of ranks: " + to_text(sum.steps, n));
  return lines;
}

}  // namespace duet
