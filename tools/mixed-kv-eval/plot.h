#pragma once

#include <string>
#include <vector>

namespace mixed_kv::tools {

// A small SVG diagram: points joined by lines, a legend of names.
struct Plot {
    struct Series {
        std::string name;
        std::vector<double> x, y;
        bool joined = true;
    };
    std::string title, x_label, y_label;
    bool log_y = false;  // points at or below zero are left out
    std::vector<Series> series;

    std::string to_svg() const;
};

}  // namespace mixed_kv::tools
