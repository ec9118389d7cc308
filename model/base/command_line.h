// Command: a subcommand of duet with its options, on top of CLI11, which reads the command line and
// the TOML file. Only files that hold a command's options include this header: CLI11 takes seconds
// to compile.
//
//   void add_schedule_command(CLI::App& duet, int&) {
//     Command cli(duet, "schedule", "draw, check and time a schedule");
//     const auto o = std::make_shared<ScheduleOptions>();
//     cli.number("--pp", o->pp, 1, 4096, "pipeline ranks");
//     cli.runs([o] { schedule_command(*o, std::cout); });
//   }
//
// An option goes straight into the variable of its final type, whose value so far is the default
// that --help shows. A value that is not allowed throws, with the one idiom "--pp: found '0',
// allowed: 1 to 4096"; what must be true of several options together is checked where they meet.
// Read next: machine/tensor.h.
#pragma once
#include <CLI/CLI.hpp>
#include <algorithm>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/base/check.h"
#include "model/base/text.h"

namespace duet {

class Command {
 public:
  Command(CLI::App& duet, const std::string& name, const std::string& purpose)
      : app_(duet.add_subcommand(name, purpose)) {
    app_->fallthrough();  // --config may stand after the command
    app_->option_defaults()->always_capture_default();
  }

  void runs(std::function<void()> body) { app_->callback(std::move(body)); }

  // Names of the options that were given.
  std::vector<std::string> given() const {
    std::vector<std::string> names;
    for (const CLI::Option* option : app_->get_options())
      if (option->count() > 0) names.push_back(option->get_name());
    return names;
  }

  // Refuses what was given beside the option `mode`, which makes something of `used` alone.
  void refuse_beside(const std::string& mode, const std::string& because,
      const std::vector<std::string>& used) const {
    std::string allowed = mode;
    for (const std::string& name : used) allowed += ", " + name;
    for (const std::string& name : given())
      require(name == mode || std::find(used.begin(), used.end(), name) != used.end(), name,
          ": found with ", mode, ", which ", because, ", allowed: ", allowed);
  }

  // "pp, ep, ...", without --help.
  std::string option_names() const {
    std::string names;
    for (const CLI::Option* option : app_->get_options())
      if (option->get_name() != "--help")
        names += (names.empty() ? "" : ", ") + option->get_single_name();
    return names;
  }

  void flag(const std::string& name, bool& value, const std::string& help) {
    app_->add_flag(name, value, help);
  }

  // A file, a folder or a name; several where V is a vector. An empty one is a shell's variable
  // that is not set, say, and never meant.
  template <class V> void text(const std::string& name, V& value, const std::string& help) {
    app_->add_option(name, value, help)->check([](const std::string& text) {
      const bool good =
          !text.empty() && text.size() <= 4096 && std::all_of(text.begin(), text.end(), is_visible);
      return good
          ? ""
          : cat("found '", shortened(text), "', allowed: 1 to 4096 characters, no line ends");
    });
  }

  // A whole or real number, from `least` to `most`. CLI11's own range would let pass what is cut to
  // 64 bits, and "nan", and reads 010 as 8.
  template <class T>
  void number(const std::string& name, T& value, std::type_identity_t<T> least,
      std::type_identity_t<T> most, const std::string& help) {
    const std::string allowed = cat(least, " to ", most);
    const auto check = [=](std::string& text) -> std::string {
      const std::optional<T> x = parse_number<T>(text);
      if (!x || *x < least || *x > most)
        return cat("found '", shortened(text), "', allowed: ", allowed);
      if (std::is_integral_v<T>) text = std::to_string(*x);
      return "";
    };
    app_->add_option(name, value, help)
        ->type_name(cat(least, "..", most))
        ->transform(CLI::Validator(check, ""));
  }

  // What `parse` makes of the text, which is not empty; it throws UsageError.
  template <class V, class Parse>
  CLI::Option* parsed(
      const std::string& name, V& value, const Parse& parse, const std::string& help) {
    return app_->add_option_function<std::string>(
        name,
        [&value, parse, name](const std::string& text) {
          value = parse(text);
          require(!text.empty(), name, ": found '', allowed: 1 or more characters");
        },
        help);
  }

  // One of a few, by the names that `name_of` gives them. V: T or std::optional<T>.
  template <class V, class T, class Name>
  void choice(const std::string& name, V& value, std::initializer_list<T> allowed,
      const Name& name_of, const std::string& help) {
    std::string names;
    for (T x : allowed) names += (names.empty() ? "" : ", ") + std::string(name_of(x));
    const auto parse = [=, all = std::vector<T>(allowed)](const std::string& text) {
      for (T x : all)
        if (text == name_of(x)) return x;
      throw UsageError(cat(name, ": found '", shortened(text), "', allowed: ", names));
    };
    CLI::Option* option = parsed(name, value, parse, help)->type_name("{" + names + "}");
    if constexpr (std::is_same_v<V, T>) option->default_str(name_of(value));
  }

 private:
  static bool is_visible(unsigned char c) { return c >= ' '; }
  CLI::App* app_;
};

}  // namespace duet
