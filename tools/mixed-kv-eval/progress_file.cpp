#include "mixed-kv-eval/progress_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace mixed_kv::tools {

ProgressFile::ProgressFile(const std::string& path, std::string key) : path_(path), key_(std::move(key)) {
    if (path_.empty()) return;
    std::uintmax_t complete_bytes = 0;
    bool cut_off = false;
    {
        std::ifstream in(path_);
        int number = 0;
        for (std::string line; std::getline(in, line);) {
            ++number;
            cut_off = in.eof();
            if (cut_off) break;
            complete_bytes += line.size() + 1;
            try {
                const auto json = nlohmann::json::parse(line);
                if (json.at("key").get<std::string>() != key_) continue;
                ChunkResult result;
                result.divergence = Divergence::from_json(json.at("divergence"));
                result.bits_sum = json.at("bits_sum").get<double>();
                result.n_bits = json.at("n_bits").get<std::size_t>();
                result.kv_bytes = json.at("kv_bytes").get<double>();
                result.cold = json.value("cold", true);  // files of earlier builds do not say
                done_[{json.at("name").get<std::string>(), json.at("chunk").get<int>()}] = std::move(result);
            } catch (const nlohmann::json::exception&) {
                throw std::runtime_error(
                    fmt::format("{} line {} is no result of mixed-kv-eval", path_, number));
            }
        }
    }
    if (cut_off) std::filesystem::resize_file(path_, complete_bytes);
    out_.open(path_, std::ios::app);
    if (!out_) throw std::runtime_error(fmt::format("cannot write {}", path_));
}

const ChunkResult* ProgressFile::find(const std::string& configuration, int chunk) const {
    const auto found = done_.find({configuration, chunk});
    return found == done_.end() ? nullptr : &found->second;
}

void ProgressFile::add(const std::string& configuration, int chunk, const ChunkResult& result) {
    if (!path_.empty()) {
        const nlohmann::json json = {{"key", key_},
                                     {"name", configuration},
                                     {"chunk", chunk},
                                     {"divergence", result.divergence.to_json()},
                                     {"bits_sum", result.bits_sum},
                                     {"n_bits", result.n_bits},
                                     {"kv_bytes", result.kv_bytes},
                                     {"cold", result.cold}};
        out_ << json.dump() << std::endl;
        if (!out_) throw std::runtime_error(fmt::format("cannot write {}", path_));
    }
    done_[{configuration, chunk}] = result;
}

}  // namespace mixed_kv::tools
