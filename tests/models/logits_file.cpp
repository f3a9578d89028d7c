#include "logits_file.h"

#include "trace/output_file.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>

namespace mixed_kv::test {

// Layout: n_vocab as a 64-bit number, then the rows as 32-bit floats, all in the machine's byte order.

void write_logits(const Logits& logits, const std::string& path) {
    trace::OutputFile file(path);
    const std::uint64_t n_vocab = logits.n_vocab;
    file.append(std::as_bytes(std::span(&n_vocab, 1)));
    file.append(std::as_bytes(std::span(logits.values)));
    file.publish();
}

Logits read_logits(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::uint64_t n_vocab = 0;
    if (!file || bytes.size() < sizeof n_vocab) {
        throw std::runtime_error("cannot read " + path);
    }
    std::memcpy(&n_vocab, bytes.data(), sizeof n_vocab);
    Logits logits;
    logits.n_vocab = n_vocab;
    logits.values.resize((bytes.size() - sizeof n_vocab) / sizeof(float));
    std::memcpy(logits.values.data(), bytes.data() + sizeof n_vocab, logits.values.size() * sizeof(float));
    if (n_vocab == 0 || logits.values.size() % n_vocab != 0) {
        throw std::runtime_error("no whole rows of logits in " + path);
    }
    return logits;
}

}  // namespace mixed_kv::test
