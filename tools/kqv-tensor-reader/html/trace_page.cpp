#include "kqv-tensor-reader/html/trace_page.h"

#include "html/page.h"
#include "kqv-tensor-reader/html/choose_records.h"
#include "kqv-tensor-reader/html/record_detail.h"
#include "trace_scripts.h"

namespace mixed_kv::trace_tools {

namespace {

constexpr size_t kMaxText = 400;  // of a recorder's text

std::string piece_name(int32_t layer, int32_t step) {
    return "record-" + std::to_string(layer) + "-" + std::to_string(step);
}

}  // namespace

std::string trace_page(const trace::TraceReader& reader, const Report& report,
                       const TracePageOptions& options) {
    tools::HtmlPage page("Trace of attention", tools::kTraceScripts);
    nlohmann::ordered_json details = nlohmann::ordered_json::array();
    // The index comes last in the file, when it is known which records have details; room for it is kept.
    tools::Bundle index;
    index.json["report"] = to_json(report);
    for (nlohmann::ordered_json& record : index.json["report"]["records"]) record.erase("tensors");
    for (const auto& [name, text] : reader.info()) {
        index.json["info"][name] = text.size() > kMaxText ? text.substr(0, kMaxText) + "... (" +
                                                                std::to_string(text.size()) + " characters)"
                                                          : text;
    }
    index.json["form"] = reader.form() == trace::TraceForm::compact ? "compact" : "self-contained";
    index.json["file_bytes"] = reader.gguf().file_bytes();
    index.json["max_bytes"] = options.max_bytes;
    const size_t reserved = tools::HtmlPage::piece("index", index).size() + 32 * options.max_details;

    for (const size_t i : by_interest(report)) {
        if (details.size() == options.max_details || page.bytes() + reserved >= options.max_bytes) break;
        const RecordCheck& line = report.records[i].check;
        const trace::TraceRecord record = reader.load({line.layer, line.step});
        const RecordCheck check = check_record(record, options.check, KeepOutput::yes);
        const RecordOriginals originals = options.originals ? options.originals(record) : RecordOriginals{};
        const std::string piece = tools::HtmlPage::piece(piece_name(line.layer, line.step),
                                                         record_detail(record, check, originals));
        if (page.bytes() + piece.size() + reserved > options.max_bytes) continue;
        page.append(piece);
        details.push_back({line.layer, line.step});
    }
    index.json["details"] = std::move(details);
    page.append(tools::HtmlPage::piece("index", index));
    return page.text();
}

}  // namespace mixed_kv::trace_tools
