#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "html/bundle.h"

namespace mixed_kv::tools {

// A report as one HTML file that needs nothing else: style, scripts and packed data. The page asks for
// nothing from anywhere (its content security policy forbids it), and text of the data never becomes markup:
// pieces are base64, and scripts put text into the page as text.
class HtmlPage {
  public:
    // title: fixed text of the tool, not of its input. scripts: those of this kind of report; they register
    // its views (page/shell.js).
    HtmlPage(std::string_view title, std::string_view scripts);

    // A piece of data, packed, under a name of letters, digits and '-'. The scripts unpack it when they need
    // it.
    static std::string piece(std::string_view name, const Bundle& bundle);
    void append(const std::string& piece) { data_ += piece; }

    // Size of the file so far.
    std::size_t bytes() const { return head_.size() + data_.size() + tail_.size(); }

    std::string text() const { return head_ + data_ + tail_; }

  private:
    std::string head_, data_, tail_;
};

// A page of one report, which its scripts find as {"report": ...} in the piece "report".
std::string report_page(std::string_view title, std::string_view scripts,
                        const nlohmann::ordered_json& report);

}  // namespace mixed_kv::tools
