// The timeline of a trace as an SVG: a row a stream, to scale in time, coloured by class, darker by
// component; below each rank, where communication was exposed or computation slowed, by cause.
// What is narrower than a pixel is joined with its neighbours.
// Read next: eplb_command.h.
#pragma once
#include <iosfwd>

#include "pipeline/insight/trace/analysis.h"

namespace duet {

void paint_timeline(std::ostream& out, const Analysis& analysis);

}  // namespace duet
