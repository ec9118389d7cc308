// The text that is always there: the project's own sources and READMEs, which the Makefile joins in
// sorted order into the file EMBEDDED_TEXT and the assembler includes here. `.data` and verbatim
// symbol names are what ELF and Mach-O have in common.
// Read next: batch.h.
#include "data/dataset.h"

asm(".data\n"
    ".globl duet_text_begin\n"
    "duet_text_begin: .incbin \"" EMBEDDED_TEXT
    "\"\n"
    ".globl duet_text_end\n"
    "duet_text_end: .byte 0\n"
    ".text\n");

extern const char text_begin[] asm("duet_text_begin");
extern const char text_end[] asm("duet_text_end");

namespace duet {

std::string_view embedded_text() { return {text_begin, size_t(text_end - text_begin)}; }

}  // namespace duet
