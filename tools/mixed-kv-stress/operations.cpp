#include "mixed-kv-stress/operations.h"

#include <algorithm>
#include <stdexcept>

namespace mixed_kv::tools {

namespace {

constexpr OpInfo kOperations[] = {
    {OpKind::decode, "decode", 30, "a batch of 1 to 40 tokens over one or more sequences"},
    {OpKind::generate, "generate", 10, "1 to 8 tokens of one sequence, one at a time"},
    {OpKind::decode_shared, "decode_shared", 2,
     "tokens that belong to two sequences at once (unified cache)"},
    {OpKind::fill, "fill", 3, "a long prompt: most of what is free"},
    {OpKind::rm_tail, "rm_tail", 8, "seq_rm of a tail (regenerate, speculative decoding)"},
    {OpKind::rm_middle, "rm_middle", 4, "seq_rm of a range in the middle"},
    {OpKind::rm_sequence, "rm_sequence", 2, "seq_rm of one whole sequence"},
    {OpKind::rm_everything, "rm_everything", 1, "seq_rm of a range of every sequence (id -1)"},
    {OpKind::copy, "seq_cp", 4, "seq_cp: whole or a prefix (unified), or from stream to stream"},
    {OpKind::keep, "seq_keep", 1, "seq_keep of one sequence"},
    {OpKind::shift, "seq_add", 3, "seq_add of a random range"},
    {OpKind::context_shift, "context_shift", 3, "drop rows behind the first ones, move the rest down"},
    {OpKind::divide, "seq_div", 2, "seq_div of a random range (self-extend)"},
    {OpKind::clear_data, "clear_data", 1, "clear(data = true)"},
    {OpKind::clear_metadata, "clear_metadata", 1, "clear(data = false)"},
    {OpKind::save_whole, "save_whole", 2, "save the whole state"},
    {OpKind::restore_whole, "restore_whole", 2, "restore a whole state saved before"},
    {OpKind::save_sequence, "save_sequence", 4, "save one sequence's state"},
    {OpKind::restore_sequence, "restore_sequence", 4,
     "restore a sequence's state into this or another sequence or context"},
    {OpKind::device_round_trip, "device_state", 2,
     "save a sequence on the device, change it, restore it (LLAMA_STATE_SEQ_FLAGS_ON_DEVICE)"},
    {OpKind::damaged_restore, "damaged_restore", 2,
     "restore a truncated or overwritten state: refused alike"},
    {OpKind::odd_bytes, "odd_bytes", 2, "read and write back an odd byte range of a cache tensor"},
    {OpKind::fragment, "fragment", 2, "interleave sequences, drop every other one, fill the holes"},
    {OpKind::requests, "requests", 2, "many requests, one after the other, behind an opening that is kept"},
    {OpKind::park, "park", 2,
     "a sequence saved, its cells given to others, restored elsewhere, several times"},
    {OpKind::endless, "endless", 1, "generation without end: context shifts behind rows that are kept"},
    {OpKind::abort_decode, "abort", 2, "the abort callback ends a decode in the middle of its graph"},
    {OpKind::recreate, "recreate", 1, "destroy a context and create one with other settings"},
};

}  // namespace

std::span<const OpInfo> all_operations() { return kOperations; }

const OpInfo& operation_info(OpKind kind) {
    return *std::find_if(std::begin(kOperations), std::end(kOperations),
                         [&](const OpInfo& info) { return info.kind == kind; });
}

std::vector<Op> random_operations(std::uint64_t seed, std::size_t n, const std::vector<std::string>& only) {
    std::vector<OpInfo> pool;
    for (const OpInfo& info : kOperations) {
        if (only.empty() || std::find(only.begin(), only.end(), info.name) != only.end())
            pool.push_back(info);
    }
    for (const std::string& name : only) {
        if (std::none_of(pool.begin(), pool.end(), [&](const OpInfo& info) { return name == info.name; }))
            throw std::invalid_argument("there is no operation '" + name + "' (--list names them)");
    }
    int total = 0;
    for (const OpInfo& info : pool) total += info.weight;
    Random random(seed);
    std::vector<Op> ops;
    ops.reserve(n);
    while (ops.size() < n) {
        int at = random.between(0, total - 1);
        for (const OpInfo& info : pool) {
            at -= info.weight;
            if (at < 0) {
                ops.push_back({info.kind, random.next()});
                break;
            }
        }
    }
    return ops;
}

}  // namespace mixed_kv::tools
