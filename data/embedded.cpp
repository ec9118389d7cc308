// The text that is always there: the project's own sources and READMEs, which the Makefile joins in
// sorted order into the file EMBEDDED_TEXT.
// Read next: batch.h.
#include "data/dataset.h"
#include "model/base/embed.h"

DUET_EMBED(text, DUET_FILE(EMBEDDED_TEXT))

namespace duet {

std::string_view embedded_text() { return text; }

}  // namespace duet
