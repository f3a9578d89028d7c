#include "mixed-kv-eval/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace mixed_kv::tools {

namespace {

constexpr double kWidth = 720, kHeight = 420, kLeft = 70, kRight = 230, kTop = 34, kBottom = 46;
constexpr const char* kColours[] = {"#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910",
                                    "#16a0a0", "#7f8c8d", "#2c3e50", "#b03a80", "#6b8e23"};

std::string escaped(const std::string& text) {
    std::string result;
    for (const char c : text) {
        if (c == '&' || c == '<' || c == '>') {
            result += fmt::format("&#{};", int(c));
        } else {
            result += c;
        }
    }
    return result;
}

// The range of an axis and where its lines are.
struct Axis {
    double low = 0, high = 1;
    std::vector<double> ticks;
};

Axis linear_axis(double low, double high) {
    if (!(high > low)) high = low + 1;
    const double raw = (high - low) / 6;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    const double step = raw > 5 * power ? 10 * power : raw > 2 * power ? 5 * power : 2 * power;
    Axis axis;
    axis.low = std::floor(low / step) * step;
    axis.high = std::ceil(high / step) * step;
    for (double x = axis.low; x <= axis.high + step / 2; x += step) axis.ticks.push_back(x);
    return axis;
}

// Of decimal logarithms: a line at every power of ten.
Axis log_axis(double low, double high) {
    Axis axis;
    axis.low = std::floor(low);
    axis.high = std::max(std::ceil(high), axis.low + 1);
    for (double x = axis.low; x <= axis.high; ++x) axis.ticks.push_back(x);
    return axis;
}

}  // namespace

std::string Plot::to_svg() const {
    struct Point {
        double x, y;
    };
    std::vector<std::vector<Point>> points(series.size());
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    for (std::size_t s = 0; s < series.size(); ++s) {
        for (std::size_t i = 0; i < series[s].x.size(); ++i) {
            if (log_y && !(series[s].y[i] > 0)) continue;
            const double y = log_y ? std::log10(series[s].y[i]) : series[s].y[i];
            if (!std::isfinite(y)) continue;
            points[s].push_back({series[s].x[i], y});
            x_low = std::min(x_low, series[s].x[i]);
            x_high = std::max(x_high, series[s].x[i]);
            y_low = std::min(y_low, y);
            y_high = std::max(y_high, y);
        }
    }
    const bool empty = !(x_low <= x_high);
    const Axis x_axis = empty ? Axis{} : linear_axis(x_low, x_high);
    const Axis y_axis = empty ? Axis{} : log_y ? log_axis(y_low, y_high) : linear_axis(y_low, y_high);
    const auto to_x = [&](double x) {
        return kLeft + (x - x_axis.low) / (x_axis.high - x_axis.low) * (kWidth - kLeft - kRight);
    };
    const auto to_y = [&](double y) {
        return kHeight - kBottom - (y - y_axis.low) / (y_axis.high - y_axis.low) * (kHeight - kTop - kBottom);
    };

    std::string svg = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
        "<text x=\"{2}\" y=\"20\" font-size=\"14\">{3}</text>\n",
        kWidth, kHeight, kLeft, escaped(title));
    for (const double x : x_axis.ticks) {
        svg += fmt::format(
            "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#ddd\"/><text x=\"{0:.1f}\" y=\"{3}\" "
            "text-anchor=\"middle\">{4:g}</text>\n",
            to_x(x), kTop, kHeight - kBottom, kHeight - kBottom + 16, x);
    }
    for (const double y : y_axis.ticks) {
        svg += fmt::format(
            "<path d=\"M{0} {1:.1f}H{2}\" stroke=\"#ddd\"/><text x=\"{3}\" y=\"{4:.1f}\" "
            "text-anchor=\"end\">{5}</text>\n",
            kLeft, to_y(y), kWidth - kRight, kLeft - 6, to_y(y) + 4,
            log_y ? fmt::format("1e{:g}", y) : fmt::format("{:g}", y));
    }
    svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       (kLeft + kWidth - kRight) / 2, kHeight - 8, escaped(x_label));
    svg += fmt::format("<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                       (kTop + kHeight - kBottom) / 2, escaped(y_label));
    for (std::size_t s = 0; s < series.size(); ++s) {
        const char* colour = kColours[s % std::size(kColours)];
        std::string line;
        for (const Point& p : points[s]) {
            line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", to_x(p.x), to_y(p.y));
            svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n", to_x(p.x),
                               to_y(p.y), colour);
        }
        if (series[s].joined && points[s].size() > 1) {
            svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", line,
                               colour);
        }
        const double y = kTop + 10 + 17 * double(s);
        svg += fmt::format(
            "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
            kWidth - kRight + 16, y - 4, colour, kWidth - kRight + 26, y, escaped(series[s].name));
    }
    return svg + "</svg>\n";
}

}  // namespace mixed_kv::tools
