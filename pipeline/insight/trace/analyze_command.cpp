// See analyze_command.h.
#include "pipeline/insight/trace/analyze_command.h"

#include <iostream>
#include <memory>
#include <optional>
#include <sstream>

#include "model/base/command_line.h"
#include "model/base/temporary_folder.h"
#include "pipeline/checkpoint/durable.h"
#include "pipeline/insight/pictures/timeline.h"
#include "pipeline/insight/trace/report.h"

namespace duet {

void analyze_command(const AnalyzeOptions& options, const RecordRun& record, std::ostream& out) {
  AnalyzeOptions o = options;
  std::optional<TemporaryFolder> folder;
  if (o.traces.empty()) {
    std::ostringstream lines;
    o.traces = {folder.emplace().path + "/trace.json"};
    record(o.traces[0], o.format == Format::text ? out : lines);
    if (o.format == Format::text) out << "\n";
  }
  const Analysis analysis = analyze(o);
  if (!o.profile.empty()) write_file(o.profile, profile_json(analysis));
  if (o.format == Format::json) return report_json(out, analysis, o.top);
  if (o.format == Format::svg) return paint_timeline(out, analysis);
  report_text(out, analysis, o);
}

void add_analyze_command(CLI::App& duet, int&, RecordRun record) {
  const auto o = std::make_shared<AnalyzeOptions>();
  Command cli(duet, "analyze",
      "where the time of a trace went; without a file, of a run recorded on the spot");
  cli.text("traces", o->traces,
      "Chrome traces, plain or gzip, of one job: files or folders; a rank is a file and GPU");
  cli.choice("--format", o->format, {Format::text, Format::json, Format::svg}, format_name,
      "svg: the timeline");
  cli.text("--classify", o->rules,
      "JSON file of rules that say what is communication, tried before the built-in ones");
  cli.choice(
      "--class-by", o->by_annotation, {false, true},
      [](bool annotation) { return annotation ? "annotation" : "name"; },
      "name: by kernels' names; annotation: also what dispatch and combine launch");
  cli.number("--top", o->top, 0, 1 << 20, "conflict points listed; 0: ten in text, all in JSON");
  cli.text("--profile", o->profile, "write the costs of components to this JSON file");
  cli.runs([o, record = std::move(record)] { analyze_command(*o, record, std::cout); });
}

}  // namespace duet
