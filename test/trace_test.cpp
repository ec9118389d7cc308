// Traces: the file of a run of several ranks read back and measured by a slow oracle, clocks that
// differ, and what is refused.
#include <chrono>
#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "model/base/clock.h"
#include "model/base/json.h"
#include "pipeline/insight/trace/trace.h"
#include "pipeline/train/train_command.h"
#include "test/testing.h"

namespace duet {
namespace {

struct Event {
  std::string phase, name, track;
  int64_t pid, tid, begin, end;  // nanoseconds
  std::string id;
  Json args;
};

int64_t ns(const Json& microseconds) { return std::llround(microseconds.number() * 1e3); }

std::vector<Event> events_of(const Json& file) {
  std::vector<Event> events;
  for (const Json& j : file.at("traceEvents").items()) {
    const std::string& phase = j.at("ph").string();
    if (phase == "M") continue;
    Event e{phase, j.at("name").string(), j.at("cat").string(), j.at("pid").integer(),
        j.at("tid").integer(), ns(j.at("ts")), 0, "", Json()};
    e.end = phase == "X" ? e.begin + ns(j.at("dur")) : e.begin;
    if (phase == "X")
      e.args = j.at("args");
    else
      e.id = j.at("id").string();
    events.push_back(e);
  }
  return events;
}

// What a rank did, looked up at every boundary of every event by itself.
Overlap oracle(const std::vector<Event>& events, int64_t pid, const std::string& track,
    const std::string& name) {
  std::set<int64_t> cuts;
  for (const Event& e : events)
    if (e.pid == pid) cuts.insert({e.begin, e.end});
  Overlap o;
  for (auto it = cuts.begin(); it != cuts.end() && std::next(it) != cuts.end(); ++it) {
    const int64_t t = *it, length = *std::next(it) - t;
    bool inside = false, compute = false, comm = false, wait = false;
    for (const Event& e : events) {
      if (e.pid != pid || e.phase != "X" || t < e.begin || t >= e.end) continue;
      inside |= e.track == track && e.name == name;
      compute |= e.track == "compute";
      comm |= e.track == "comm";
      wait |= e.track == "wait" || e.args.find("blocks");
    }
    if (!inside) continue;
    o.span += length;
    o.compute += (compute && !wait) * length;
    o.comm += comm * length;
    o.covered += (compute && !wait && comm) * length;
  }
  return o;
}

class TraceTest : public FolderTest {
 protected:
  TrainOptions options() const {
    TrainOptions o;
    o.preset = "tiny";
    o.model = parse_sizes("n_layers=4");
    o.seq_len = 16;
    o.microbatches = 4;
    o.steps = 4;
    o.dp = o.ep = o.pp = 2;
    o.schedule = "dualpipe";
    o.device = DeviceKind::cpu;
    o.threads = 1;
    o.val_every = 0;
    o.val_sequences = 4;
    o.sample = 0;
    o.log_every = 1;
    o.trace = folder_ + "/trace.json";
    return o;
  }
  static std::string run(const TrainOptions& o) {
    std::ostringstream text;
    train_command(o, text);
    return text.str();
  }
  // A recorded step of one rank with 4 ms of computation and 2 ms of communication within it, on a
  // stream of its own or not.
  MeasuredOverlap one_step(bool blocking) const {
    MeasuredOverlap measured;
    run_ranks({.ranks = 1}, [&](Comm& world) {
      const auto device = make_cpu_device(1);
      CommStream comm(world, *device);
      const Layout layout;
      Trace trace(world, layout, {folder_ + "/trace.json", 1, 1});
      Recorder recorder(*device);
      const auto sleep = [](int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
      {
        Scope step(&recorder, device->compute(), {"step", "step"});
        Scope pair(&recorder, device->compute(), {"pair", "actions", 0, 1});
        Scope phase(&recorder, device->compute(), {"attention F", "compute", 0, 1, 3});
        sleep(1);
        {
          Stream& stream = blocking ? device->compute() : comm;
          Scope message(&recorder, stream, {"dispatch F", "comm", 0, 1, 3, 4096});
          stream.host([&] { sleep(2); });
        }
        comm->synchronize();
        sleep(1);
      }
      measured = trace.add(1, recorder);
    });
    return measured;
  }
};

TEST_F(TraceTest, CommunicationOnTheComputeStreamIsExposed) {
  for (bool blocking : {false, true}) {
    const MeasuredOverlap m = one_step(blocking);
    EXPECT_GE(m.steps.comm, 2000000);
    EXPECT_EQ(m.steps.exposed(), blocking ? m.steps.comm : 0);
    EXPECT_EQ(m.pairs.covered, m.steps.covered);
    EXPECT_GE(m.steps.span, m.pairs.span);
    const Json file = Json::load(folder_ + "/trace.json");
    for (const Event& e : events_of(file)) {
      if (e.track != "comm") continue;
      EXPECT_EQ(e.args.find("blocks").has_value(), blocking);
      EXPECT_EQ(e.args.at("bytes").integer(), 4096);
      EXPECT_EQ(e.args.at("layer").integer(), 3);
    }
  }
}

TEST_F(TraceTest, ArrowsJoinEachSendToTheWaitForItsMessage) {
  run_ranks({.ranks = 4}, [&](Comm& world) {  // two pipelines of two ranks
    const auto device = make_cpu_device(1);
    const Layout layout{.dp = 2, .pp = 2};
    Trace trace(world, layout, {folder_ + "/trace.json", 7, 8});
    for (int64_t step : {7, 8}) {
      Recorder recorder(*device);
      const auto mark = [&](const char* name, const char* track, int stage, int m) {
        Scope scope(&recorder, device->compute(), {name, track, stage, m});
      };
      for (int m : {0, 1}) {
        const bool first = layout.pp_rank(world.rank()) == 0;
        if (first) mark("SEND_F", "actions", 0, m);
        world.barrier();
        if (!first)
          mark("RECV_F", "actions", 1, m), mark("RECV_F", "wait", 1, m),
              mark("SEND_B", "actions", 1, m);
        world.barrier();
        if (first) mark("RECV_B", "actions", 0, m);  // and nobody waits
      }
      trace.add(step, recorder);
    }
    EXPECT_EQ(trace.finish().size(), 2u);
  });
  const auto events = events_of(Json::load(folder_ + "/trace.json"));
  std::map<std::string, std::vector<const Event*>> arrows;
  for (const Event& e : events)
    if (e.phase != "X") arrows[e.id].push_back(&e);
  EXPECT_EQ(arrows.size(), size_t(2 * 2 * 2 * 2));  // steps, pipelines, microbatches, directions
  for (const auto& [id, ends] : arrows) {
    ASSERT_EQ(ends.size(), 2u);
    const Event& from = *ends[ends[0]->phase == "f"];
    const Event& to = *ends[ends[0]->phase == "s"];
    EXPECT_EQ(from.phase, "s");
    EXPECT_EQ(to.phase, "f");
    EXPECT_LE(from.begin, to.begin);
    EXPECT_EQ(from.pid % 2, to.pid % 2);  // of one pipeline
    EXPECT_NE(from.pid, to.pid);
    const auto at = [&](const Event& end) {
      for (const Event& e : events)
        if (e.phase == "X" && e.pid == end.pid && e.tid == end.tid && e.begin <= end.begin &&
            end.begin <= e.end)
          return e;
      return Event{};
    };
    EXPECT_EQ(at(from).args.at("microbatch").integer(), at(to).args.at("microbatch").integer());
    EXPECT_EQ(at(from).args.at("step").integer(), at(to).args.at("step").integer());
    EXPECT_EQ(at(from).name.substr(5), at(to).name.substr(5));
    EXPECT_EQ(at(to).track, at(to).name == "RECV_F" ? "wait" : "actions");
  }
}

TEST_F(TraceTest, ClocksThatDifferAreBroughtTogether) {
  const int64_t skew[] = {0, 5'000'000'000, -70'000'000, 0};
  run_ranks({.ranks = 4}, [&](Comm& world) {
    const ClockOffset c =
        clock_offset(world, [&] { return nanoseconds_now() + skew[world.rank()]; });
    EXPECT_LE(std::abs(c.ahead - skew[world.rank()]), c.error) << world.rank();
    EXPECT_LT(c.error, 50'000'000);
    EXPECT_EQ(c.ahead == 0, skew[world.rank()] == 0);
  });
}

// --- runs ----------------------------------------------------------------------------------------

TEST_F(TraceTest, FileOfARunIsInOrderAndItsSummaryIsTheOracles) {
  const TrainOptions o = options();
  const std::string text = run(o);
  for (const char* part :
      {"steps 2 to 3", "4 ranks", "span ", "covered ", "exposed ", "| overlap "})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is missing in\n" << text;
  const Json file = Json::load(o.trace);
  const auto events = events_of(file);
  std::map<std::pair<int64_t, int64_t>, Event> steps;  // by rank and step
  std::map<std::string, int> sends, receives;
  for (const Event& e : events) {
    if (e.track == "step") steps[{e.pid, e.args.at("step").integer()}] = e;
    if (e.track == "actions" && e.name.starts_with("SEND_")) ++sends[e.name.substr(5)];
    if (e.track == "actions" && e.name.starts_with("RECV_")) ++receives[e.name.substr(5)];
  }
  EXPECT_EQ(steps.size(), size_t(4 * 2));
  EXPECT_EQ(sends, receives);

  // by rank and thread: what is going on
  std::map<std::pair<int64_t, int64_t>, std::vector<Event>> open;
  // a rank's are in the order in which they began
  for (const Event& e : events) {
    if (e.phase != "X") continue;
    const Event& step = steps[{e.pid, e.args.at("step").integer()}];
    EXPECT_GE(e.begin, step.begin) << e.name;
    EXPECT_LE(e.end, step.end) << e.name;
    auto& stack = open[{e.pid, e.tid}];
    while (!stack.empty() && stack.back().end <= e.begin) stack.pop_back();
    EXPECT_TRUE(stack.empty() || e.end <= stack.back().end)
        << e.name << " ends after " << stack.back().name << " around it";
    stack.push_back(e);
  }
  for (int64_t rank = 0; rank < 4; ++rank)
    for (const bool pairs : {false, true}) {
      const char* key = pairs ? "pairs" : "steps";
      const Overlap o = oracle(events, rank, pairs ? "actions" : "step", pairs ? "pair" : "step");
      const Json& found = file.at("otherData").at("ranks").items()[size_t(rank)].at(key);
      EXPECT_NEAR(found.at("span_ms").number(), double(o.span) * 1e-6, 1e-9);
      EXPECT_NEAR(found.at("compute_ms").number(), double(o.compute) * 1e-6, 1e-9);
      EXPECT_NEAR(found.at("communication_ms").number(), double(o.comm) * 1e-6, 1e-9);
      EXPECT_NEAR(found.at("covered_ms").number(), double(o.covered) * 1e-6, 1e-9);
      EXPECT_NEAR(found.at("exposed_ms").number(), double(o.exposed()) * 1e-6, 1e-9);
    }
}

TEST_F(TraceTest, RecordingChangesNoBit) {
  TrainOptions o = options();
  const auto losses = [](const std::string& text) {
    std::vector<std::string> all;
    for (size_t at = text.find("| loss"); at != text.npos; at = text.find("| loss", at + 1))
      all.push_back(text.substr(at, text.find("| lr", at) - at));  // and the gradient's norm
    return all;
  };
  const auto with = losses(run(o));
  o.trace.clear();
  EXPECT_EQ(with.size(), 4u);
  EXPECT_EQ(with, losses(run(o)));
}

TEST_F(TraceTest, StepsAreThoseAskedFor) {
  TrainOptions o = options();
  const auto steps = [&] {
    run(o);
    const Json file = Json::load(o.trace);
    const Json& other = file.at("otherData");
    return std::pair(other.at("first_step").integer(), other.at("last_step").integer());
  };
  o.trace_steps = {3, 3};
  EXPECT_EQ(steps(), std::pair(int64_t(3), int64_t(3)));
  o.trace_steps = {1, 2};
  EXPECT_EQ(steps(), std::pair(int64_t(1), int64_t(2)));
  o.trace_steps.reset();
  o.steps = 1;
  EXPECT_EQ(steps(), std::pair(int64_t(1), int64_t(1)));
  EXPECT_EQ(options().traced_steps(1), std::pair(int64_t(3), int64_t(4)));  // of a run that goes on
}

TEST_F(TraceTest, RefusesFilesAndStepsAndWritesNothing) {
  const auto refused = [&](auto change, const std::vector<std::string>& words) {
    TrainOptions o = options();
    o.out = folder_ + "/run";
    change(o);
    try {
      run(o);
      ADD_FAILURE() << "accepted, expected a refusal that says " << words[0];
    } catch (const UsageError& error) {
      for (const std::string& word : words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
    EXPECT_TRUE(fs::is_empty(folder_)) << words[0];
  };
  refused([this](TrainOptions& o) { o.trace = folder_ + "/nowhere/trace.json"; },
      {"--trace:", "nowhere"});
  refused([this](TrainOptions& o) { o.trace = folder_; }, {"--trace:", folder_, "allowed: a file"});
  refused([](TrainOptions& o) { o.trace = "/proc/trace.json"; }, {"--trace:", "/proc"});
  for (const char* steps : {"0-2", "3-2", "2-5"})
    refused([&](TrainOptions& o) { o.trace_steps = parse_range(steps); },
        {"--trace-steps:", steps, "1 to 4"});
  refused(
      [](TrainOptions& o) {
        o.trace.clear(), o.trace_steps = {2, 2};
      },
      {"--trace-steps:", "--trace"});

  TrainOptions o = options();  // the run's folder, which is made later
  o.out = folder_ + "/run";
  o.trace = o.out + "/trace.json";
  run(o);
  EXPECT_TRUE(fs::exists(o.trace));
}

}  // namespace
}  // namespace duet
