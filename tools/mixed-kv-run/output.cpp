#include "mixed-kv-run/output.h"

#include <fmt/format.h>

#include <algorithm>

namespace mixed_kv::tools {

namespace {

std::string mebibytes(std::uint64_t bytes) {
    return fmt::format("{:.2f} MiB", static_cast<double>(bytes) / (1024.0 * 1024.0));
}

std::string row(const char* name, const std::string& value, const std::string& f16) {
    return f16.empty() ? fmt::format("{:<12}{:>16}\n", name, value)
                       : fmt::format("{:<12}{:>16}{:>16}\n", name, value, f16);
}

}  // namespace

std::optional<std::size_t> first_difference(const RunResult& a, const RunResult& b) {
    const auto [in_a, in_b] =
        std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end());
    if (in_a == a.tokens.end() && in_b == b.tokens.end()) {
        return std::nullopt;
    }
    return static_cast<std::size_t>(in_a - a.tokens.begin());
}

nlohmann::ordered_json to_json(const RunResult& result) {
    return {
        {"active", result.active},
        {"kv_bytes", result.kv_bytes},
        {"kv_bytes_f16", result.kv_bytes_f16.value_or(0)},
        {"kv_bytes_f16_measured", result.kv_bytes_f16_measured},
        {"kv_bookkeeping_bytes", result.kv_bookkeeping_bytes},
        {"bits_per_value", result.bits_per_value()},
        {"budget_bytes", result.budget_bytes},
        {"budget_steps", result.budget_steps},
        {"n_ctx", result.n_ctx},
        {"live_rows", result.n_live_rows},
        {"prompt_tokens", result.n_prompt},
        {"generated_tokens", result.tokens.size()},
        {"prompt_tokens_per_second", result.prompt_speed()},
        {"generation_tokens_per_second", result.generation_speed()},
        {"report", result.report},
        {"tokens", result.tokens},
        {"text", result.text},
    };
}

std::string summary(const RunResult& result, const RunResult* f16) {
    const auto other = [f16](auto text_of) { return f16 != nullptr ? text_of(*f16) : std::string(); };
    const auto prompt = [](const RunResult& r) { return fmt::format("{:.1f} t/s", r.prompt_speed()); };
    const auto generation = [](const RunResult& r) {
        return r.n_decoded > 0 ? fmt::format("{:.1f} t/s", r.generation_speed()) : std::string("-");
    };
    const auto bits = [](const RunResult& r) { return fmt::format("{:.2f}", r.bits_per_value()); };
    const auto memory = [](const RunResult& r) { return mebibytes(r.kv_bytes); };

    std::string text;
    if (f16 != nullptr) {
        text += row("", result.active ? "mixed" : "not mixed", "F16");
    }
    text += row("prompt", prompt(result), other(prompt));
    text += row("generation", generation(result), other(generation));
    text += row("KV memory", memory(result), other(memory));
    text += row("bits/value", bits(result), other(bits));
    const std::uint64_t f16_bytes = result.kv_bytes_f16.value_or(0);
    if (f16_bytes > 0) {
        text += fmt::format("{} live rows of {}: {} of KV memory, {:.1f} % of the {} that they take in F16\n",
                            result.n_live_rows, result.n_ctx, mebibytes(result.kv_bytes),
                            100.0 * static_cast<double>(result.kv_bytes) / static_cast<double>(f16_bytes),
                            mebibytes(f16_bytes));
    }
    if (result.budget_bytes > 0) {
        text += fmt::format("the budget leaves {} for rows: {}\n", mebibytes(result.budget_bytes),
                            result.budget_steps == 0
                                ? std::string("all of them are exact")
                                : fmt::format("pages stepped down {} times", result.budget_steps));
    }
    if (f16 != nullptr) {
        const std::optional<std::size_t> difference = first_difference(result, *f16);
        text += difference ? fmt::format("the texts part at generated token {} (of {})\n", *difference,
                                         std::max(result.tokens.size(), f16->tokens.size()))
                           : fmt::format("both generated the same {} tokens\n", result.tokens.size());
    }
    return text;
}

}  // namespace mixed_kv::tools
