#include "common/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <deque>
#include <optional>
#include <type_traits>

#include "common/run_tool.h"

namespace mixed_kv::tools {

struct Option::State {
    CLI::Option* option = nullptr;
    bool takes_value = true;
    bool required = false;
    std::vector<std::string> names;  // with their dashes, llama.cpp's short ones among them
    std::vector<std::string> choices;
    std::string alone;
};

// What the constructors share: a program and its subcommands are alike.
struct CommandLine::State {
    std::unique_ptr<CLI::App> own;  // of the program
    CLI::App* app = nullptr;
    std::string name;
    std::deque<Option::State> options;  // stays in place when it grows
    std::vector<std::unique_ptr<CommandLine>> subcommands;
};

namespace {

// "-ctk": llama.cpp's way, which CLI11 does not know.
bool is_llama_name(const std::string& name) { return name.size() > 2 && name[0] == '-' && name[1] != '-'; }

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts(1);
    for (const char c : text) {
        if (c == separator) {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

std::string joined(const std::vector<std::string>& parts, const char* separator) {
    std::string text;
    for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
    return text;
}

struct Names {
    std::vector<std::string> all;
    std::string for_cli11;    // what is left for it, separated by commas
    std::string help_prefix;  // "-ctk: "
};

Names parse_names(const std::string& text) {
    Names names;
    names.all = split(text, ',');
    std::vector<std::string> plain;
    for (const std::string& name : names.all) {
        if (is_llama_name(name)) {
            names.help_prefix = name + ": ";
        } else {
            plain.push_back(name);
        }
    }
    names.for_cli11 = joined(plain, ",");
    return names;
}

template <typename T>
constexpr bool kIsList = false;
template <typename T>
constexpr bool kIsList<std::vector<T>> = true;
template <typename T>
constexpr bool kIsOptional = false;
template <typename T>
constexpr bool kIsOptional<std::optional<T>> = true;

template <typename T>
std::string text_of(const std::vector<T>& values) {
    std::vector<std::string> texts;
    for (const T& value : values) texts.push_back(CLI::detail::to_string(value));
    return joined(texts, ",");
}

// The options as CLI11 wants them: llama.cpp's names replaced by long ones, values added to options that
// stand alone. What follows an option that takes a value is its value, whatever it looks like.
class Rewriting {
  public:
    void know(std::deque<Option::State>& options) {
        for (Option::State& option : options) known_.push_back(&option);
    }

    std::vector<std::string> rewritten(int argc, char** argv) const {
        std::vector<std::string> arguments;
        bool is_value = false;
        for (int i = 1; i < argc; ++i) {
            const std::string text = argv[i];
            if (text == "--" && !is_value) {
                arguments.insert(arguments.end(), argv + i, argv + argc);
                break;
            }
            const std::size_t equals = text.find('=');
            const Option::State* option = is_value ? nullptr : find(text.substr(0, equals));
            is_value = false;
            if (option == nullptr) {
                arguments.push_back(text);
                continue;
            }
            const bool has_value = equals != std::string::npos;
            arguments.push_back(long_name(*option) + (has_value ? text.substr(equals) : ""));
            if (has_value || !option->takes_value) continue;
            const auto& choices = option->choices;
            const bool value_follows =
                i + 1 < argc && std::find(choices.begin(), choices.end(), argv[i + 1]) != choices.end();
            if (!option->alone.empty() && !value_follows) {
                arguments.push_back(option->alone);
            } else {
                is_value = true;
            }
        }
        return arguments;
    }

  private:
    const Option::State* find(const std::string& name) const {
        for (const Option::State* option : known_) {
            if (std::find(option->names.begin(), option->names.end(), name) != option->names.end())
                return option;
        }
        return nullptr;
    }
    static std::string long_name(const Option::State& option) {
        for (const std::string& name : option.names) {
            if (name.rfind("--", 0) == 0) return name;
        }
        return option.names.front();
    }

    std::vector<const Option::State*> known_;
};

}  // namespace

Option& Option::required() {
    state_->required = true;
    return *this;
}

Option& Option::value_name(const std::string& name) {
    state_->option->type_name(name);
    return *this;
}

Option& Option::range(std::int64_t least, std::int64_t largest) {
    state_->option->check(CLI::Range(least, largest));
    return *this;
}

Option& Option::at_least(std::int64_t least) {
    state_->option->check(CLI::Validator(
        [least](std::string& text) {
            std::int64_t value = 0;
            const bool accepted = CLI::detail::lexical_cast(text, value) && value >= least;
            return accepted ? std::string() : text + " is not accepted: at least " + std::to_string(least);
        },
        "at least " + std::to_string(least)));
    return *this;
}

Option& Option::one_of(const std::vector<std::string>& values) {
    state_->choices = values;
    state_->option->check(CLI::IsMember(values));
    return *this;
}

Option& Option::alone(const std::string& value) {
    state_->alone = value;
    return *this;
}

Option& Option::group(const std::string& heading) {
    state_->option->group(heading);
    return *this;
}

CommandLine::CommandLine(const std::string& name, const std::string& description)
    : state_(std::make_unique<State>()) {
    state_->own = std::make_unique<CLI::App>(description, name);
    state_->app = state_->own.get();
    state_->name = name;
    state_->app->set_version_flag("--version", name + " (ggml-mixed-kv) " MIXED_KV_VERSION,
                                  "Print the version and exit");
}

CommandLine::CommandLine(std::unique_ptr<State> state) : state_(std::move(state)) {}

CommandLine::~CommandLine() = default;

Option::State& CommandLine::remember(Option::State option) {
    state_->options.push_back(std::move(option));
    return state_->options.back();
}

template <typename Value>
Option CommandLine::option(const std::string& names, Value& value, const std::string& help) {
    const Names parsed = parse_names(names);
    Option::State state;
    state.names = parsed.all;
    state.option = state_->app->add_option(parsed.for_cli11, value, parsed.help_prefix + help);
    if constexpr (kIsList<Value>) {
        constexpr int kMost = 64;
        state.option->delimiter(',')->expected(1, kMost)->default_str(
            value.empty() ? "" : "[" + text_of(value) + "]");
    } else if constexpr (!kIsOptional<Value>) {
        state.option->capture_default_str();
    }
    return Option(remember(std::move(state)));
}

// NOLINTBEGIN(bugprone-macro-parentheses)
#define MIXED_KV_OPTION_OF(...) \
    template Option CommandLine::option<__VA_ARGS__>(const std::string&, __VA_ARGS__&, const std::string&)
#define MIXED_KV_OPTION_OF_SCALAR(type) \
    MIXED_KV_OPTION_OF(type);           \
    MIXED_KV_OPTION_OF(std::optional<type>)
// NOLINTEND(bugprone-macro-parentheses)
MIXED_KV_OPTION_OF_SCALAR(std::string);
MIXED_KV_OPTION_OF_SCALAR(int);
MIXED_KV_OPTION_OF_SCALAR(std::int64_t);
MIXED_KV_OPTION_OF_SCALAR(std::uint32_t);
MIXED_KV_OPTION_OF_SCALAR(std::uint64_t);
MIXED_KV_OPTION_OF_SCALAR(float);
MIXED_KV_OPTION_OF_SCALAR(double);
MIXED_KV_OPTION_OF(std::vector<std::string>);
MIXED_KV_OPTION_OF(std::vector<int>);
MIXED_KV_OPTION_OF(std::vector<std::int64_t>);

Option CommandLine::flag(const std::string& names, bool& value, const std::string& help) {
    const Names parsed = parse_names(names);
    Option::State state;
    state.names = parsed.all;
    state.takes_value = false;
    state.option = state_->app->add_flag(parsed.for_cli11, value, parsed.help_prefix + help);
    return Option(remember(std::move(state)));
}

CommandLine& CommandLine::subcommand(const std::string& name, const std::string& description) {
    auto state = std::make_unique<State>();
    state->app = state_->app->add_subcommand(name, description);
    state->app->fallthrough();  // --version is the program's
    state->name = name;
    state_->subcommands.push_back(std::unique_ptr<CommandLine>(new CommandLine(std::move(state))));
    return *state_->subcommands.back();
}

bool CommandLine::given() const { return state_->app->parsed(); }

bool CommandLine::parse(int argc, char** argv) {
    CLI::App& app = *state_->app;
    Rewriting rewriting;
    rewriting.know(state_->options);
    for (const auto& subcommand : state_->subcommands) rewriting.know(subcommand->state_->options);
    std::vector<std::string> arguments = rewriting.rewritten(argc, argv);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first

    std::vector<State*> parts = {state_.get()};
    std::vector<std::string> names;
    for (const auto& subcommand : state_->subcommands) {
        parts.push_back(subcommand->state_.get());
        names.push_back(subcommand->state_->name);
    }
    const auto refuse = [](const std::string& what) {
        throw UsageError(what + " (--help lists the options)");
    };
    const auto missing_subcommand = [&]() -> std::string {
        if (names.empty() || !app.get_subcommands().empty()) return "";
        return "; no subcommand: give one of " + joined(names, ", ");
    };
    try {
        app.parse(arguments);
    } catch (const CLI::CallForVersion& version) {
        write_stdout(version.what() + std::string("\n"));
        return false;
    } catch (const CLI::CallForHelp&) {
        // CLI11 looks for what is missing before it looks for what it does not know, so it learns only here
        // what is required.
        for (State* part : parts) {
            for (Option::State& option : part->options) option.option->required(option.required);
        }
        write_stdout(app.help());
        return false;
    } catch (const CLI::ParseError& error) {
        refuse(error.what() + missing_subcommand());
    }
    if (const std::string missing = missing_subcommand(); !missing.empty()) refuse(missing.substr(2));
    for (const State* part : parts) {
        if (part->app->count() == 0 && part != state_.get()) continue;
        for (const Option::State& option : part->options) {
            if (option.required && option.option->count() == 0)
                refuse(option.option->get_name() + " is required");
        }
    }
    return true;
}

}  // namespace mixed_kv::tools
