#include "mixed-kv-bench/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace mixed_kv::tools {

namespace {

constexpr double kLeft = 60, kTop = 56, kWidth = 560, kHeight = 300, kRight = 130, kBottom = 46;

struct Line {
    std::string name, colour;
    std::function<const Spread&(const ModelCase&)> rate;
};

std::vector<Line> lines_of(const ModelReport& report) {
    const ModelCase& first = report.cases.front();
    std::vector<Line> lines = {{fmt::format("mixed {}/{}", first.k, first.v), "#c2410c",
                                [](const ModelCase& c) -> const Spread& { return c.tokens_per_second; }}};
    const std::pair<const char*, const char*> hosts[] = {
        {"f16", "#1d4ed8"}, {"q8_0", "#15803d"}, {"q4_0", "#7e22ce"}};
    for (const auto& [type, colour] : hosts) {
        if (first.host.count(type) == 0) continue;
        lines.push_back(
            {std::string("llama.cpp ") + type, colour,
             [name = std::string(type)](const ModelCase& c) -> const Spread& { return c.host.at(name); }});
    }
    return lines;
}

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
    return out;
}

}  // namespace

std::string plot_svg(const ModelReport& report) {
    const std::vector<Line> lines = lines_of(report);
    double low = 1e300, high = 0;
    for (const ModelCase& c : report.cases) {
        for (const Line& line : lines) {
            low = std::min(low, line.rate(c).median);
            high = std::max(high, line.rate(c).median);
        }
    }
    low = std::pow(10.0, std::floor(std::log10(low)));
    high = std::pow(10.0, std::ceil(std::log10(high)));
    const std::size_t n = report.cases.size();
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
    svg += fmt::format("<text x=\"10\" y=\"18\">Tokens per second against context depth{}: {}</text>\n",
                       report.n_prompt == 1 ? "" : fmt::format(", prompts of {} tokens", report.n_prompt),
                       escaped(report.description));
    svg += fmt::format("<text x=\"10\" y=\"34\">{}, {} threads, kernels {}; window {}, sinks {}</text>\n",
                       escaped(report.machine.cpu), report.machine.n_threads, report.machine.isa,
                       report.window, report.sinks);
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
    for (std::size_t i = 0; i < n; ++i) {
        svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n", x(i),
                           kTop + kHeight + 18, report.cases[i].depth);
    }
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">tokens in the cache</text>\n",
                       kLeft + kWidth / 2, kTop + kHeight + 36);
    for (std::size_t l = 0; l < lines.size(); ++l) {
        const Line& line = lines[l];
        std::string points;
        for (std::size_t i = 0; i < n; ++i)
            points += fmt::format("{:.1f},{:.1f} ", x(i), y(line.rate(report.cases[i]).median));
        svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                           points, line.colour);
        for (std::size_t i = 0; i < n; ++i) {
            const Spread& s = line.rate(report.cases[i]);
            svg += fmt::format(
                "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"><title>{} at {}: {:.2f} tokens/s "
                "({:.2f} to {:.2f})</title></circle>\n",
                x(i), y(s.median), line.colour, line.name, report.cases[i].depth, s.median, s.q1, s.q3);
        }
        const double at = kTop + 14 + 18 * double(l);
        svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"12\" height=\"3\" fill=\"{}\"/>\n",
                           kLeft + kWidth + 12, at - 5, line.colour);
        svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", kLeft + kWidth + 30, at, line.name);
    }
    return svg + "</svg>\n";
}

}  // namespace mixed_kv::tools
