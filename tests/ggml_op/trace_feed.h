#pragma once

#include <string>

namespace mixed_kv::test {

struct FeedOptions {
    std::string file;
    std::string isa;             // empty: the recorded one where this CPU can run it, else the fastest
    int n_threads = 0;           // 0: as recorded
    bool require_exact = false;  // a step that can only be held to a tolerance is a failure
    bool require_cold = false;   // so is a file without any cold page
};

// Feeds every recorded step of a mixed cache through the op and compares with its kqv_out: bit for bit where
// kernel set and number of threads are those of the recording, else within 1e-4 of the largest |V|. Prints a
// table; 0 when all agree. Throws Error for a file that is refused.
int feed_trace(const FeedOptions& options);

}  // namespace mixed_kv::test
