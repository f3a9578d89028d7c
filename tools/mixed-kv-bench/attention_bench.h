#pragma once

#include <map>
#include <string>
#include <vector>

#include "mixed-kv-bench/arguments.h"
#include "mixed-kv-bench/statistics.h"

namespace mixed_kv::tools {

// Medians of a few ops over the host's caches in each of the memories they were tried in.
using PlacementTimes = std::vector<double>;  // us

// Index of the fastest; times: not empty.
std::size_t fastest(const PlacementTimes& times);

// What one run of the benchmark stands on, beside its cases.
struct BenchMachine {
    std::string cpu, host_library, isa, read_pattern;
    int n_threads = 1;
    std::size_t last_level_cache_bytes = 0, rotation_bytes = 0;
    bool reads_memory = true;   // the rotation is large enough that DRAM is read
    double read_bandwidth = 0;  // bytes per second
    std::size_t read_samples = 0;
};

struct HostTime {
    Spread us;
    std::uint64_t kv_bytes = 0;
    double bandwidth_share = 0;
    PlacementTimes placements = {};
};

struct AttentionCase {
    AttentionShape shape;
    std::string k, v;
    Spread us;
    std::uint64_t kv_bytes = 0;
    double bandwidth_share = 0;
    double gflops = 0, peak_gflops = 0;
    std::string unit;  // of the peak; several joined by " + "
    double relative_rms = 0;
    std::size_t scratch_bytes_per_thread = 0;
    std::map<std::string, HostTime> host;  // by type

    double speedup(const std::string& type) const { return host.at(type).us.median / us.median; }
};

struct AttentionReport {
    BenchMode mode = BenchMode::attention;
    BenchMachine machine;
    std::map<std::string, double> peaks;  // GFLOP/s by unit
    std::vector<AttentionCase> cases;
};

// The machine as far as it is known before anything is measured.
BenchMachine describe_machine(const BenchArguments& arguments);

// Fills in every share of report.machine.read_bandwidth. Throws std::runtime_error when one is above 1.
void add_shares(AttentionReport& report);

// Runs all cases. Throws std::runtime_error when a result is wrong or a share of the read bandwidth is
// above 1.
AttentionReport run_attention_bench(const BenchArguments& arguments);

}  // namespace mixed_kv::tools
