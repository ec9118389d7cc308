// Attribute: whose work is a kernel? Its correlation id names the CPU call that launched it, and
// that call lies within annotations of its thread: the innermost one is the kernel's component. A
// thread without annotations of its own (autograd's backward) works for the one whose annotations
// are open in its process at that moment. Several kernels of one launch (CUDA graphs) share its
// component.
//
// A process's launches serve the GPU whose kernels they fit best, so ranks are not mixed where one
// file holds several. Without a launch the component is "unattributed"; with one outside all
// annotations, "outside annotations".
// Read next: measure.h.
#pragma once
#include "pipeline/insight/trace/events.h"

namespace duet {

// Fills in component, layer, ordinal and launched of every event but duet's own.
void attribute(Recording& recording, Names& names);

// 'F', 'B', 'I' or 'W' of names like "attn(F)" and "experts F"; else 0.
char phase_of(std::string_view component);
// attention, experts, dispatch or combine, by how the name begins; else empty.
std::string_view part_of(const std::string& component);

}  // namespace duet
