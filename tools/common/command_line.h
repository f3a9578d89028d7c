#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/run_tool.h"

namespace mixed_kv::tools {

// The command line of a program. CLI11 does the work behind it, in one source file: every file that includes
// CLI11 takes half a minute to compile.
//
//   int run(int argc, char** argv) {
//       CommandLine command("mixed-kv-example", "Says what it does.");
//       std::string model;
//       int n = 16;
//       bool json = false;
//       command.option("-m,--model", model, "GGUF model").required().value_name("FILE");
//       command.option("-n,--predict", n, "Tokens to generate").at_least(0);  // --help shows the 16
//       command.flag("--json", json, "Print one JSON object");
//       if (!command.parse(argc, argv)) return kExitOk;
//       ...
//   }
//   int main(int argc, char** argv) {
//       return mixed_kv::tools::run_tool("mixed-kv-example", [&] { return run(argc, argv); });
//   }
//
// Every program has --help and --version. A command line that is refused is a UsageError (run_tool.h), and an
// option that does not exist is named before one that is missing.
class Option {
  public:
    struct State;
    explicit Option(State& state) : state_(&state) {}

    Option& required();
    // What --help calls the value.
    Option& value_name(const std::string& name);
    // Numbers: the least and the largest that are accepted.
    Option& range(std::int64_t least, std::int64_t largest);
    Option& at_least(std::int64_t least);
    Option& one_of(const std::vector<std::string>& values);
    // Given without a value, that is with none of one_of's after it, the option means this.
    Option& alone(const std::string& value);
    // The heading it stands under in --help.
    Option& group(const std::string& heading);

  private:
    State* state_;
};

class CommandLine {
  public:
    CommandLine(const std::string& name, const std::string& description);
    ~CommandLine();
    CommandLine(const CommandLine&) = delete;
    CommandLine& operator=(const CommandLine&) = delete;

    // names: "-m,--model"; a name without dashes makes it positional. Names such as -ctk, of several letters
    // after one dash, are understood as llama.cpp's programs understand them.
    // Value: std::string, int, int64_t, uint32_t, uint64_t, float, double; std::optional of these, empty
    // until the option is given; or std::vector of strings, int or int64_t, separated by commas. What the
    // value is now is the default. A type that is missing is an error of the linker: command_line.cpp lists
    // them.
    template <typename Value>
    Option option(const std::string& names, Value& value, const std::string& help);
    // True when it is given.
    Option flag(const std::string& names, bool& value, const std::string& help);

    // A command of its own with options of its own; where there are any, one of them has to be given.
    CommandLine& subcommand(const std::string& name, const std::string& description);
    bool given() const;  // this subcommand

    // False: --help or --version was asked for and has been printed. Throws UsageError.
    bool parse(int argc, char** argv);

  private:
    struct State;
    explicit CommandLine(std::unique_ptr<State> state);
    Option::State& remember(Option::State option);

    std::unique_ptr<State> state_;
};

}  // namespace mixed_kv::tools
