// TOML: what stands in strings arrives as it stands there, and what is not TOML is refused by line.
#include <gtest/gtest.h>

#include "data_files.h"
#include "model/base/toml.h"

namespace duet {
namespace {

std::string text_of(const std::string& toml) {
  std::string text;
  for (const TomlItem& item : read_toml(toml, "f")) {
    text += cat(item.section, ".", item.key);
    for (const std::string& value : item.values) text += cat("|", value);
    text += ";";
  }
  return text;
}

TEST(Toml, WhatPeopleWrite) {
  EXPECT_EQ(text_of(""), "");
  EXPECT_EQ(text_of("# only\n\n \t# this"), "");
  EXPECT_EQ(text_of("steps=1\r\n lr = 3e-4 # fast\nschedule = dualpipe"),
      ".steps|1;.lr|3e-4;.schedule|dualpipe;");
  EXPECT_EQ(text_of("[train]\npp=2\n[ eplb ] # b\nloads='a'\n"), "train.pp|2;eplb.loads|a;");
  EXPECT_EQ(text_of("train.pp = 2\n\"out\" = \"x\""), "train.pp|2;.out|x;");
  EXPECT_EQ(text_of("a=[]\nb=[1, 'x,]#', \"y\",\n  # in between\n  2,\n]\nc=true"),
      ".a;.b|1|x,]#|y|2;.c|true;");
}

TEST(Toml, StringsAsTheyStand) {
  EXPECT_EQ(text_of("o='runs/a#1' # b"), ".o|runs/a#1;");
  EXPECT_EQ(text_of("o=\"a # b\""), ".o|a # b;");
  EXPECT_EQ(text_of(R"(o='C:\new "x"')"), R"(.o|C:\new "x";)");
  EXPECT_EQ(text_of(R"(o="a\tb\n\"c\"\\ \u00e9\u20ac\U0001F600")"),
      ".o|a\tb\n\"c\"\\ \u00e9\u20ac\U0001F600;");
  EXPECT_EQ(text_of("o=''\np=\"\""), ".o|;.p|;");
}

TEST(Toml, WhatIsNotTomlIsRefusedWithItsLine) {
  for (const auto& [toml, found] : std::vector<std::pair<std::string, std::string>>{
           {"a=1\no=\"un", "line 2: expected a string that ends on its line, found '\"un'"},
           {"o='un\n'", "line 1: expected a string that ends"},
           {"o=\"a\"b", "line 1: expected the line's end, found 'b'"},
           {"\n\n=3", "line 3: expected a name, found '=3'"}, {"o=", "line 1: expected a value"},
           {"o=#x", "line 1: expected a value"}, {"words", "expected key = value, found 'words'"},
           {"[train", "expected [section], found '[train'"}, {"[]\n", "expected a name"},
           {"[a] b", "expected the line's end, found 'b'"},
           {"o={a=1}", "expected a string, a number"}, {"o=[1 2", "expected a comma or ]"},
           {"o=['a' 'b']", "expected a comma or ], found ''b']'"},
           {"o=\"\"\"x\"\"\"", "expected a string of one line"},
           {R"(o="\q")", "expected escapes that TOML has"}, {R"(o="\u12")", "expected escapes"},
           {R"(o="\ud800")", "expected escapes"}, {"o=\"\\", "expected escapes"}})
    expect_contains(usage_error([&, &text = toml] { read_toml(text, "f"); }), {"f: ", found});
}

}  // namespace
}  // namespace duet
