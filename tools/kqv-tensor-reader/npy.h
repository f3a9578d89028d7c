#pragma once

#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

namespace mixed_kv::trace_tools {

// A NumPy array file (format 1.0) of doubles in C order.
inline std::string npy_file(std::initializer_list<long long> shape, const std::vector<double>& values) {
    std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (";
    for (const long long n : shape) header += std::to_string(n) + ", ";
    header += "), }";
    // Magic, version and length take 10 bytes; header and padding end at a multiple of 64, with a line break.
    header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');
    header += '\n';
    const auto length = static_cast<unsigned>(header.size());
    std::string file("\x93NUMPY\x01\x00", 8);
    file += static_cast<char>(length & 255U);
    file += static_cast<char>(length >> 8);
    file += header;
    const size_t data = file.size();
    file.resize(data + values.size() * sizeof(double));
    if (!values.empty()) std::memcpy(file.data() + data, values.data(), values.size() * sizeof(double));
    return file;
}

}  // namespace mixed_kv::trace_tools
