#include "html/page.h"

#include <random>

#include "html/packing.h"
#include "page_scripts.h"
#include "page_style.h"

namespace mixed_kv::tools {

namespace {

// The only script that may run is the one that carries this page's own word. What is hostile in a trace would
// first have to become markup, which it cannot; this is the second lock.
std::string fresh_word() {
    std::random_device random;
    std::string word;
    for (int i = 0; i < 4; ++i) word += std::to_string(random());
    return word;
}

}  // namespace

HtmlPage::HtmlPage(std::string_view title, std::string_view scripts) {
    const std::string word = fresh_word();
    head_ += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    head_ += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'nonce-";
    head_ += word;
    head_ += "'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'\">\n";
    head_ += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>";
    head_ += title;
    head_ += "</title>\n<style>\n";
    head_ += kPageStyle;
    head_ +=
        "</style>\n</head>\n<body>\n<noscript>This report draws itself with JavaScript, which is "
        "off.</noscript>\n";
    tail_ += "<script nonce=\"";
    tail_ += word;
    tail_ += "\">\n\"use strict\";\n(() => {\n";
    tail_ += kPageScripts;
    tail_ += scripts;
    tail_ += "startReport();\n})();\n</script>\n</body>\n</html>\n";
}

std::string HtmlPage::piece(std::string_view name, const Bundle& bundle) {
    std::string text = "<script type=\"application/octet-stream\" data-piece=\"";
    text += name;
    text += "\" data-packing=\"";
    text += packing_name();
    text += "\">";
    text += pack(bundle.bytes());
    return text + "</script>\n";
}

std::string report_page(std::string_view title, std::string_view scripts,
                        const nlohmann::ordered_json& report) {
    HtmlPage page(title, scripts);
    Bundle bundle;
    bundle.json["report"] = report;
    page.append(HtmlPage::piece("report", bundle));
    return page.text();
}

}  // namespace mixed_kv::tools
