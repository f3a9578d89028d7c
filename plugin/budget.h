#pragma once

#include <string>
#include <vector>

#include "kv_buffer.h"

namespace mixed_kv::plugin {

// GGML_MIXED_KV_BUDGET_MB: what caches hold stays within the budget at every moment, records and work in
// progress included, up to the larger of 1 % and 1 MiB (docs/memory.md has the proof). Every tensor gets a
// part of it for its pages (cache/budget_shares.h) and keeps to that by itself.

// Divides the budget among live caches anew; caches with different budgets do not count against each other.
// Throws Error, and changes nothing, when the lowest rung does not fit. Takes each cache's lock.
void share_budgets(const std::vector<KvBuffer*>& caches);

// What the pages of a cache may take, in bytes.
double allowed_bytes(const KvBuffer& cache);
// "exact up to 9200 tokens, q8 from there, q4 from 17300": of one sequence in each stream that grows token by
// token.
std::string fill_text(const KvBuffer& cache);

}  // namespace mixed_kv::plugin
