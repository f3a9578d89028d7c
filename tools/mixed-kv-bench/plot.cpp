#include "mixed-kv-bench/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace mixed_kv::tools {

namespace {

constexpr double kLeft = 60, kTop = 56, kWidth = 560, kHeight = 300, kRight = 130, kBottom = 46;

constexpr std::size_t kMostLabels = 12;  // that fit below

struct Line {
    std::string name, colour;
    std::vector<Spread> rates;  // tokens per second, one per depth
};

struct Chart {
    std::string title, caption;
    std::vector<std::int64_t> depths;
    std::vector<Line> lines;
};

// Of ours, then of the host's types.
template <typename Case, typename OurRate, typename HostRate>
std::vector<Line> lines_of(const std::vector<Case>& cases, const std::string& k, const std::string& v,
                           OurRate ours, HostRate host) {
    std::vector<Line> lines = {{fmt::format("mixed {}/{}", k, v), "#c2410c", {}}};
    for (const Case& c : cases) lines.front().rates.push_back(ours(c));
    const std::pair<const char*, const char*> types[] = {
        {"f16", "#1d4ed8"}, {"q8_0", "#15803d"}, {"q4_0", "#7e22ce"}};
    for (const auto& [type, colour] : types) {
        if (cases.front().host.count(type) == 0) continue;
        lines.push_back({std::string("llama.cpp ") + type, colour, {}});
        for (const Case& c : cases) lines.back().rates.push_back(host(c, c.host.at(type)));
    }
    return lines;
}

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
    return out;
}

std::string machine_caption(const BenchMachine& machine, int window, int sinks) {
    return fmt::format("{}, {} threads, kernels {}; window {}, sinks {}", machine.cpu, machine.n_threads,
                       machine.isa, window, sinks);
}

std::string draw(const Chart& chart) {
    const std::vector<Line>& lines = chart.lines;
    double low = 1e300, high = 0;
    for (const Line& line : lines) {
        for (const Spread& rate : line.rates) {
            low = std::min(low, rate.median);
            high = std::max(high, rate.median);
        }
    }
    low = std::pow(10.0, std::floor(std::log10(low)));
    high = std::pow(10.0, std::ceil(std::log10(high)));
    const std::size_t n = chart.depths.size();
    const auto x = [&](std::size_t i) {
        return kLeft + (n == 1 ? kWidth / 2 : kWidth * double(i) / double(n - 1));
    };
    const auto y = [&](double rate) {
        return kTop +
               kHeight * (1 - (std::log10(rate) - std::log10(low)) / (std::log10(high) - std::log10(low)));
    };
    std::string svg = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
        "font-family=\"sans-serif\" "
        "font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        kLeft + kWidth + kRight, kTop + kHeight + kBottom);
    svg += fmt::format("<text x=\"10\" y=\"18\">{}</text>\n<text x=\"10\" y=\"34\">{}</text>\n",
                       escaped(chart.title), escaped(chart.caption));
    for (double decade = low; decade < high * 1.001; decade *= 10) {
        for (const double factor : {1.0, 2.0, 5.0}) {
            const double rate = decade * factor;
            if (rate > high * 1.001) continue;
            svg += fmt::format(
                "<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#dddddd\"/>\n",
                kLeft, kLeft + kWidth, y(rate));
            svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n", kLeft - 6,
                               y(rate) + 4, rate);
        }
    }
    for (std::size_t i = 0; i < n; i += (n + kMostLabels - 1) / kMostLabels) {
        svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n", x(i),
                           kTop + kHeight + 18, chart.depths[i]);
    }
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">tokens in the cache</text>\n",
                       kLeft + kWidth / 2, kTop + kHeight + 36);
    for (std::size_t l = 0; l < lines.size(); ++l) {
        const Line& line = lines[l];
        std::string points;
        for (std::size_t i = 0; i < n; ++i)
            points += fmt::format("{:.1f},{:.1f} ", x(i), y(line.rates[i].median));
        svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                           points, line.colour);
        for (std::size_t i = 0; i < n; ++i) {
            const Spread& s = line.rates[i];
            svg += fmt::format(
                "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"><title>{} at {}: {:.2f} tokens/s "
                "({:.2f} to {:.2f})</title></circle>\n",
                x(i), y(s.median), line.colour, line.name, chart.depths[i], s.median, s.q1, s.q3);
        }
        const double at = kTop + 14 + 18 * double(l);
        svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"12\" height=\"3\" fill=\"{}\"/>\n",
                           kLeft + kWidth + 12, at - 5, line.colour);
        svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", kLeft + kWidth + 30, at, line.name);
    }
    return svg + "</svg>\n";
}

}  // namespace

std::string plot_svg(const ModelReport& report) {
    const ModelCase& first = report.cases.front();
    Chart chart;
    chart.title = "Tokens per second against context depth";
    if (report.n_prompt > 1) chart.title += fmt::format(", prompts of {} tokens", report.n_prompt);
    if (first.n_parallel > 1) chart.title += fmt::format(", {} sequences", first.n_parallel);
    chart.title += ": " + report.description;
    chart.caption = machine_caption(report.machine, report.window, report.sinks);
    for (const ModelCase& c : report.cases) chart.depths.push_back(c.depth);
    chart.lines = lines_of(
        report.cases, first.k, first.v, [](const ModelCase& c) { return c.tokens_per_second; },
        [](const ModelCase&, const Spread& rate) { return rate; });
    return draw(chart);
}

std::string plot_svg(const PromptReport& report) {
    const auto rate = [](const PromptUbatch& u, const Spread& seconds) {
        return Spread{u.n_tokens / seconds.median, u.n_tokens / seconds.q3, u.n_tokens / seconds.q1,
                      seconds.n};
    };
    Chart chart;
    chart.title = fmt::format("Tokens per second of every ubatch, prompt of {} tokens: {}", report.n_prompt,
                              report.description);
    chart.caption = machine_caption(report.machine, report.window, report.sinks);
    for (const PromptUbatch& u : report.ubatches) chart.depths.push_back(u.depth);
    chart.lines = lines_of(
        report.ubatches, report.k, report.v, [&](const PromptUbatch& u) { return rate(u, u.seconds); }, rate);
    return draw(chart);
}

}  // namespace mixed_kv::tools
