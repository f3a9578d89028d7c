#include "mixed-kv-bench/attention_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "common/cpu_topology.h"
#include "common/llama_handles.h"
#include "common/resident_memory.h"
#include "mixed-kv-bench/compute_peak.h"
#include "mixed-kv-bench/read_bandwidth.h"
#include "mixed-kv-bench/verify.h"
#include "mixed_kv/flash_decode.h"
#include "mixed_kv/isa.h"

namespace mixed_kv::tools {

namespace {

// Ops per round and variant: enough to last this long, so that a short op is not measured behind another's
// caches.
constexpr double kSecondsPerRound = 8e-3;
constexpr int kMaxOpsPerRound = 64;
constexpr int kPlacementOps = 5;  // that judge a placement of the host's caches
constexpr std::size_t kBandwidthSampleBytes = std::size_t(256) << 20;

// Scratch of one thread for this shape, as FlashDecode plans it; it depends on nothing that pages hold.
std::size_t scratch_bytes(const AttentionShape& shape, const std::string& isa, int n_threads) {
    FlashDecode decode(kernel_set(isa));
    std::vector<PageTable> tables(std::size_t(shape.n_seq));
    for (PageTable& t : tables) t.layout.shape = {shape.n_head_kv, shape.head_dim};
    AttentionArgs args;
    args.n_stream = shape.n_seq;
    args.n_q = shape.n_q;
    args.n_kv = shape.n_kv;
    args.n_head = shape.n_head;
    args.n_head_kv = shape.n_head_kv;
    args.head_dim_k = args.head_dim_v = shape.head_dim;
    args.k = args.v = tables.data();
    MaskPages pages;
    pages.classify({}, shape.n_seq, shape.n_q, shape.n_kv);
    decode.plan(args, pages, n_threads);
    return decode.scratch_bytes_per_thread();
}

// One rig with its measurements.
struct Contestant {
    std::unique_ptr<AttentionRig> rig;
    std::vector<double> us;

    void run_round() {
        double seconds = 0;
        for (int i = 0; i < kMaxOpsPerRound && (i == 0 || seconds < kSecondsPerRound); ++i) {
            const double op = rig->run_next();
            seconds += op;
            us.push_back(op * 1e6);
        }
    }
};

// The host's rig in the fastest of several memories. Where memory lies can decide: fresh memory of a virtual
// machine may be mapped piece by piece in both of its page tables, and f16, which waits for memory, then
// takes four times as long as elsewhere, in that process and not in the next. Every other placement is asked
// for in huge pages, which ours has, too.
std::unique_ptr<AttentionRig> place_host(HostRuntime& runtime, const AttentionShape& shape,
                                         const AttentionData& data, const std::string& type,
                                         std::size_t rotation, int n_placements, PlacementTimes& times) {
    std::unique_ptr<AttentionRig> best;
    for (int i = 0; i < n_placements; ++i) {
        // The best so far stays where it is meanwhile, so this one comes to lie elsewhere.
        auto rig = std::make_unique<AttentionRig>(
            runtime, shape, data,
            AttentionRig::Options{type, *cache_type_from_name(type), "", rotation, i % 2 != 0});
        for (int warm_up = 0; warm_up < 2; ++warm_up) rig->run_next();
        std::vector<double> us;
        for (int op = 0; op < kPlacementOps; ++op) us.push_back(rig->run_next() * 1e6);
        times.push_back(spread_of(us).median);
        if (fastest(times) == times.size() - 1) best = std::move(rig);
    }
    return best;
}

// Of a case, for messages.
std::string place(const AttentionShape& shape, const std::string& k, const std::string& v) {
    return fmt::format("k={}, v={}, n_kv={}, n_q={}, n_seq={}", k, v, shape.n_kv, shape.n_q, shape.n_seq);
}

void check_memory(const AttentionShape& shape, const BenchArguments& arguments, std::size_t rotation) {
    const std::size_t one = std::size_t(shape.kv_values()) * 2;  // in FP16
    const std::size_t source = one * 3;  // rows as FP16, and as float while quantizing
    // While the host's last type tries another placement there is one rig more.
    const std::size_t trying = !arguments.host_types.empty() && arguments.host_placements > 1 ? 1 : 0;
    const std::size_t needed =
        source + (1 + arguments.host_types.size() + trying) * std::max(rotation, 2 * one);
    const std::uint64_t available = available_memory_bytes();
    if (needed > available) {
        throw std::runtime_error(
            fmt::format("this benchmark needs about {} MiB and {} are available; --host with fewer types, "
                        "fewer rows or sequences, --host-placements 1, or --rotate-mib below {} take less",
                        needed >> 20, available >> 20, rotation >> 20));
    }
}

AttentionCase run_case(HostRuntime& runtime, ReadBandwidth& bandwidth, const BenchArguments& arguments,
                       const AttentionShape& shape, const AttentionData& data, const std::string& k,
                       const std::string& v, std::size_t rotation) {
    AttentionCase result;
    result.shape = shape;
    result.k = k;
    result.v = v;
    std::vector<Contestant> contestants;
    contestants.emplace_back();
    contestants.back().rig = std::make_unique<AttentionRig>(
        runtime, shape, data,
        AttentionRig::Options{"ours", GGML_TYPE_F16,
                              fmt::format("k={},v={},window=0,sinks=0,isa={}", k, v, arguments.isa),
                              rotation});
    std::vector<PlacementTimes> placements;
    for (const std::string& type : arguments.host_types) {
        placements.emplace_back();
        contestants.emplace_back();
        contestants.back().rig =
            place_host(runtime, shape, data, type, rotation, arguments.host_placements, placements.back());
    }
    for (Contestant& c : contestants) {  // warm-up
        for (int i = 0; i < 2; ++i) c.rig->run_next();
    }
    bandwidth.next_group();
    for (int round = 0; round < arguments.n_rounds; ++round) {
        bandwidth.sample(kBandwidthSampleBytes);
        for (Contestant& c : contestants) c.run_round();
    }
    const Contestant& ours = contestants.front();
    result.us = spread_of(ours.us);
    result.kv_bytes = ours.rig->kv_bytes();
    result.gflops = shape.useful_operations() / (result.us.median * 1e3);
    result.scratch_bytes_per_thread = scratch_bytes(shape, arguments.isa, arguments.n_threads);
    for (std::size_t i = 1; i < contestants.size(); ++i) {
        const Contestant& c = contestants[i];
        result.host[c.rig->name()] = {spread_of(c.us), c.rig->kv_bytes(), 0, placements[i - 1]};
    }
    result.relative_rms = relative_rms(runtime, *ours.rig, shape, data);
    const double allowed = relative_rms_allowed(k != "f16" || v != "f16");
    if (!(result.relative_rms <= allowed)) {
        throw std::runtime_error(
            fmt::format("wrong result: {}: relative RMS {:.3g} against double, at most {:.3g} is right",
                        place(shape, k, v), result.relative_rms, allowed));
    }
    return result;
}

// The least time that the units used would need for their shares of the work, one after the other.
void set_peak(AttentionCase& c, std::map<std::string, double>& peaks, const BenchArguments& arguments) {
    double time = 0;
    for (const auto& [unit, share] : units_used(arguments.isa, c.shape, c.k, c.v)) {
        if (peaks.count(unit) == 0)
            peaks[unit] = measure_peak(unit, arguments.n_threads).operations_per_second * 1e-9;
        time += share / peaks[unit];
        c.unit += (c.unit.empty() ? "" : " + ") + unit;
    }
    c.peak_gflops = 1 / time;
}

}  // namespace

std::size_t fastest(const PlacementTimes& times) {
    return std::size_t(std::min_element(times.begin(), times.end()) - times.begin());
}

void add_shares(AttentionReport& report) {
    const auto share = [&](const Spread& us, std::uint64_t bytes, const std::string& what) {
        const double value = double(bytes) / (us.median * 1e-6) / report.machine.read_bandwidth;
        if (!(value <= 1.0)) {
            throw std::runtime_error(fmt::format(
                "{} reads {:.2f} times as fast as memory: not memory was measured but caches{}", what, value,
                report.machine.reads_memory
                    ? ", or the machine was disturbed while its bandwidth was measured"
                    : " (--rotate-mib 1024 reads memory)"));
        }
        return value;
    };
    for (AttentionCase& c : report.cases) {
        c.bandwidth_share = share(c.us, c.kv_bytes, place(c.shape, c.k, c.v));
        for (auto& [type, host] : c.host)
            host.bandwidth_share =
                share(host.us, host.kv_bytes, "the host's " + type + " beside " + place(c.shape, c.k, c.v));
    }
}

BenchMachine describe_machine(const BenchArguments& arguments) {
    BenchMachine machine;
    machine.cpu = cpu_model_name();
    machine.isa = arguments.isa;
    machine.n_threads = arguments.n_threads;
    machine.last_level_cache_bytes = last_level_cache_bytes();
    const std::size_t asked = arguments.rotation_mib << 20;
    machine.reads_memory = asked >= std::size_t(1) << 30;
    machine.rotation_bytes =
        machine.reads_memory ? std::max(asked, 2 * machine.last_level_cache_bytes) : asked;
    return machine;
}

AttentionReport run_attention_bench(const BenchArguments& arguments) {
    AttentionReport report;
    report.mode = arguments.mode;
    report.machine = describe_machine(arguments);
    BenchMachine& machine = report.machine;
    HostRuntime runtime(arguments.n_threads);
    machine.host_library = runtime.cpu_library();
    for (const AttentionShape& shape : arguments.shapes())
        check_memory(shape, arguments, machine.rotation_bytes);
    ReadBandwidth bandwidth(machine.rotation_bytes, arguments.n_threads);
    bandwidth.choose_pattern(3);
    for (const AttentionShape& shape : arguments.shapes()) {
        const AttentionData data(shape);
        for (const auto& [k, v] : arguments.formats()) {
            AttentionCase c =
                run_case(runtime, bandwidth, arguments, shape, data, k, v, machine.rotation_bytes);
            set_peak(c, report.peaks, arguments);
            report.cases.push_back(std::move(c));
        }
    }
    machine.read_bandwidth = bandwidth.bytes_per_second();
    machine.read_samples = bandwidth.n_samples();
    machine.read_pattern = bandwidth.pattern();
    add_shares(report);
    return report;
}

}  // namespace mixed_kv::tools
