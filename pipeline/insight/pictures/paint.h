// Pictures of schedules: a grid for the terminal and an SVG in the manner of the papers' figures,
// both to scale in time.
//
// Painters read a schedule and when its actions happened: simulated here, measured in a trace. They
// decide nothing. Colours: F amber, B green, I blue, W violet; a rank's second chunk (DualPipe: the
// second direction) is the darker shade. An overlapped pair is framed, its F and its B side by
// side. What is left blank is the bubble.
// Read next: paint_text.cpp.
#pragma once
#include <iosfwd>
#include <span>
#include <string>

#include "pipeline/schedule/checker.h"
#include "pipeline/schedule/simulator.h"

namespace duet {

struct Terminal {
  bool color = false;
  int columns = 0;  // longer rows are folded into bands; 0: never
};
Terminal terminal_of_stdout();  // colour only where stdout is a terminal and NO_COLOR is not set

// Without colour the second chunk's letters are small: f3, b3. Dots are idle time.
void paint_text(
    std::ostream& out, const Schedule& schedule, const Timing& timing, const Terminal& terminal);

// A schedule with all that is known about it.
struct Picture {
  Schedule schedule;
  StageCosts costs;  // of its stages, on average: where a pair is divided
  Usage usage;
  Timing timing;
  std::string caption;  // beside the schedule's title
};
// The pictures below each other to one scale in time, with one legend.
void paint_svg(std::ostream& out, std::span<const Picture> pictures);

// For both: each stage's place among the stages of its rank, 0 for the first; of a schedule of two
// directions, the direction.
std::vector<int> chunk_of_stage(const Schedule& schedule);

// The title of a schedule: "DualPipe" of "dualpipe"; of a file its name.
std::string title_of(const Schedule& schedule);

}  // namespace duet
