// malloc and its like for every library of the process, with one request refused: the executable that links
// this stands before glibc. For children of a test, each with a fault of its own.
#pragma once

#include <cstddef>

namespace mixed_kv::test {

// Which requests are counted.
enum class Requests {
    all,           // of any library
    under_plugin,  // those made while a function of the plugin is on the stack, whoever makes them
};

// What a child tells its parent, in memory that both have.
struct FaultReport {
    static constexpr std::size_t kText = 4096;
    long n_requests = 0;  // counted until disarm()
    bool refused = false;
    bool refused_under_plugin = false;
    char refused_at[kText] =
        {};  // "libllama.so!llama_decode < ...", the innermost first, without malloc itself
    int signal = 0;
    bool died_under_plugin = false;
    char died_at[kText] = {};
};

// The n-th request from now on is refused, 1 the first; n < 1: none, they are only counted. The report also
// gets the signal that ends the process, if one does.
void arm(Requests which, long n, FaultReport& report);
void disarm();

}  // namespace mixed_kv::test
