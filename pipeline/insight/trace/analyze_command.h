// The command `duet analyze`: where the time of a recorded run went, and why communication was not
// covered (analysis.h). Without a file it analyses a run that is recorded on the spot.
//
// Exit status: 0, also where nothing is communication, which is said loudly; 2 for a file that is
// no trace, is damaged, or has no GPU events.
// Read next: plan/README.md.
#pragma once
#include <functional>
#include <iosfwd>
#include <string>

#include "pipeline/insight/trace/analysis.h"

namespace duet {

// Runs something worth seeing, writing its lines to `out`, with its trace in `file`.
using RecordRun = std::function<void(const std::string& file, std::ostream& out)>;

void analyze_command(const AnalyzeOptions& options, const RecordRun& record, std::ostream& out);

// Adds the command and its options to the command line.
void add_analyze_command(CLI::App& duet, int& exit_status, RecordRun record);

}  // namespace duet
