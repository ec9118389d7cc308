// Files that are part of the program: the assembler includes them, a string_view is what they hold.
//
//   DUET_EMBED(families, DUET_FILE("pipeline/insight/plan/models/families.json"))
//   ... Json::parse(families, "families.json")
//
// The contents may be several files with text between them. Names are of the whole program. The
// Makefile says which object depends on which file.
// Read next: toml.h.
#pragma once
#include <string_view>

#define DUET_FILE(path) ".incbin \"" path "\"\n"

// `.data` and verbatim symbol names are what ELF and Mach-O have in common.
#define DUET_EMBED(name, contents)                                                    \
  asm(".data\n.globl duet_" #name "\nduet_" #name ":\n" contents ".globl duet_" #name \
      "_end\nduet_" #name "_end: .byte 0\n.text\n");                                  \
  extern const char name##_begin[] asm("duet_" #name);                                \
  extern const char name##_end[] asm("duet_" #name "_end");                           \
  static const std::string_view name(name##_begin, size_t(name##_end - name##_begin));
