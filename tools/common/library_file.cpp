#include "common/library_file.h"

#include <elf.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

namespace mixed_kv::tools {

namespace {

#if defined(__x86_64__)
constexpr int kThisMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr int kThisMachine = EM_AARCH64;
#else
#error "library_file: name this machine"
#endif

std::string machine_name(int machine) {
    constexpr std::pair<int, const char*> kNames[] = {
        {EM_386, "32-bit x86"}, {EM_X86_64, "x86-64"}, {EM_ARM, "32-bit Arm"}, {EM_AARCH64, "64-bit Arm"},
        {EM_RISCV, "RISC-V"},   {EM_PPC64, "POWER"},   {EM_S390, "IBM Z"}};
    for (const auto& [number, name] : kNames) {
        if (number == machine) {
            return name;
        }
    }
    return "a machine of number " + std::to_string(machine);
}

template <typename T>
bool read_at(std::ifstream& file, std::uint64_t offset, T& value) {
    file.seekg(static_cast<std::streamoff>(offset));
    return static_cast<bool>(file.read(reinterpret_cast<char*>(&value), sizeof value));
}

std::string truncated(std::uint64_t size, std::uint64_t needed) {
    return "is truncated: " + std::to_string(size) + " bytes of at least " + std::to_string(needed);
}

// Of a library for this machine: the bytes that its segments and its table of sections span.
std::string why_incomplete(std::ifstream& file, std::uint64_t size, const Elf64_Ehdr& header) {
    std::uint64_t needed = header.e_shoff + std::uint64_t{header.e_shnum} * header.e_shentsize;
    if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0) {
        return "is no shared library: it has no segments";
    }
    for (int i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        const std::uint64_t at = header.e_phoff + std::uint64_t(i) * sizeof segment;
        if (at + sizeof segment > size || !read_at(file, at, segment)) {
            return truncated(size, at + sizeof segment);
        }
        if (segment.p_type == PT_LOAD) {
            needed = std::max(needed, segment.p_offset + segment.p_filesz);
        }
    }
    return needed > size ? truncated(size, needed) : "";
}

}  // namespace

std::string why_no_library(const std::string& path) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    if (status.type() == std::filesystem::file_type::not_found) {
        return "does not exist";
    }
    if (error) {
        return "cannot be looked at: " + error.message();
    }
    if (std::filesystem::is_directory(status)) {
        return "is a folder, not a library";
    }
    if (!std::filesystem::is_regular_file(status)) {
        return "is no regular file";
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        return std::string("cannot be read: ") + std::strerror(errno);
    }
    const std::uint64_t size = std::filesystem::file_size(path, error);
    if (error) {
        return "cannot be looked at: " + error.message();
    }
    if (size == 0) {
        return "is empty";
    }
    Elf64_Ehdr header = {};
    file.read(reinterpret_cast<char*>(&header), sizeof header);
    const auto got = static_cast<std::size_t>(file.gcount());
    if (got < SELFMAG || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
        return "is no library, but a file of another kind (it does not begin as ELF files do)";
    }
    if (got < sizeof header) {
        return truncated(size, sizeof header);
    }
    // Where the machine is written does not depend on the class; a foreign byte order is a foreign machine.
    if (header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_machine != kThisMachine) {
        const int machine = header.e_ident[EI_DATA] == ELFDATA2LSB
                                ? header.e_machine
                                : ((header.e_machine & 0xff) << 8) | (header.e_machine >> 8);
        return "is for " + machine_name(machine) + ", this machine is " + machine_name(kThisMachine);
    }
    if (header.e_type != ET_DYN) {
        return "is no shared library";
    }
    file.clear();
    return why_incomplete(file, size, header);
}

}  // namespace mixed_kv::tools
