#include "mixed-kv-eval/coded_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <stdexcept>

#include "common/host_kv_tensors.h"

namespace mixed_kv::tools {

namespace {

// The cache tensor that a node writes rows of, or null.
ggml_tensor* written_cache(const ggml_tensor* node) {
    if (node->op != GGML_OP_SET_ROWS) return nullptr;
    ggml_tensor* root = node->view_src;
    return root != nullptr && is_kv_tensor_name(root->name) ? root : nullptr;
}

std::vector<std::int64_t> read_cells(const ggml_tensor* cells) {
    std::vector<std::int64_t> result(static_cast<std::size_t>(ggml_nelements(cells)));
    if (cells->type == GGML_TYPE_I64) {
        ggml_backend_tensor_get(cells, result.data(), 0, ggml_nbytes(cells));
    } else {
        std::vector<std::int32_t> narrow(result.size());
        ggml_backend_tensor_get(cells, narrow.data(), 0, ggml_nbytes(cells));
        std::copy(narrow.begin(), narrow.end(), result.begin());
    }
    return result;
}

// Cells first .. end - 1 of a page.
std::uint64_t cell_range(std::int64_t first, std::int64_t end) {
    const auto below = [](std::int64_t n) {
        return n >= kPageTokens ? ~std::uint64_t{0} : (std::uint64_t{1} << std::max<std::int64_t>(n, 0)) - 1;
    };
    return below(end) & ~below(first);
}

}  // namespace

CodedRows::CodedRows(std::unique_ptr<RowCodec> codec, ExactRows exact)
    : codec_(std::move(codec)), exact_(exact) {}

void CodedRows::follow(const std::vector<mixed_kv_tensor_info>& tensors) {
    int first_layer = INT_MAX;
    for (const mixed_kv_tensor_info& info : tensors)
        first_layer = std::min(first_layer, kv_tensor_layer(info.name));
    for (const mixed_kv_tensor_info& info : tensors) {
        if (info.n_head < 1 || info.head_dim < 1) {
            throw std::runtime_error(fmt::format("no attention reads {}", info.name));
        }
        if (const std::string refusal = codec_->refusal(info.n_head, info.head_dim); !refusal.empty()) {
            throw std::runtime_error(fmt::format("{}: {}", info.name, refusal));
        }
        tensors_[info.name] = {info.is_value != 0 ? KvRole::value : KvRole::key, info.n_head, info.head_dim,
                               kv_tensor_layer(info.name) == first_layer};
    }
    if (tensors_.empty()) throw std::runtime_error("the plugin holds no cache of this model");
}

bool CodedRows::on_node(ggml_tensor* node, bool ask, void* self) noexcept {
    ggml_tensor* cache = written_cache(node);
    if (ask) return cache != nullptr;
    if (cache != nullptr) static_cast<CodedRows*>(self)->after_write(cache, node->src[1]);
    return true;
}

void CodedRows::after_write(ggml_tensor* cache, const ggml_tensor* cells_tensor) {
    const auto found = tensors_.find(cache->name);
    if (found == tensors_.end()) return;
    Tensor& tensor = found->second;
    const std::vector<std::int64_t> cells = read_cells(cells_tensor);
    if (cells.empty()) return;
    if (cells.front() == 0) tensor.n_rows = tensor.n_coded = 0;  // a new sequence
    const std::int64_t before = tensor.n_rows;
    for (const std::int64_t cell : cells) {
        if (cell == tensor.n_rows) {
            ++tensor.n_rows;
        } else {
            fault_ = fmt::format(
                "{}: row {} comes at cell {}: only caches that rows are appended to can be followed",
                cache->name, tensor.n_rows, cell);
            return;
        }
    }
    code(cache, tensor, end_of_coded(tensor, before));
}

// The cache looks for the window in the newest mask that it has been shown: the first layer is written before
// this graph's has come, the others after it. Pages that this write adds to stay.
std::int64_t CodedRows::end_of_coded(const Tensor& tensor, std::int64_t before) const {
    if (exact_.none()) return tensor.n_rows;
    const std::int64_t seen = tensor.is_first ? before : tensor.n_rows;
    const std::int64_t end = std::min(before, seen - exact_.window);
    return end < 0 ? 0 : end / kPageTokens * kPageTokens;
}

void CodedRows::code(ggml_tensor* cache, Tensor& tensor, std::int64_t end) {
    const auto row_bytes = cache->nb[1];
    std::vector<fp16_t> rows;
    while (tensor.n_coded < end) {
        const std::int64_t page = tensor.n_coded / kPageTokens * kPageTokens;
        const std::int64_t page_end = std::min<std::int64_t>(end, page + kPageTokens);
        const std::int64_t n = page_end - page;
        const std::size_t offset = static_cast<std::size_t>(page) * row_bytes;
        const std::size_t bytes = static_cast<std::size_t>(n) * row_bytes;
        rows.resize(bytes / sizeof(fp16_t));
        ggml_backend_tensor_get(cache, rows.data(), offset, bytes);
        codec_->store_and_read({tensor.role, tensor.n_head, tensor.head_dim, rows.data(), static_cast<int>(n),
                                cell_range(std::max<std::int64_t>(tensor.n_coded, exact_.sinks) - page, n)});
        ggml_backend_tensor_set(cache, rows.data(), offset, bytes);
        tensor.n_coded = page_end;
    }
}

double CodedRows::bytes() const {
    constexpr double kExactBits = 16;
    double bits = 0;
    for (const auto& [name, tensor] : tensors_) {
        const double row = double(tensor.n_head) * tensor.head_dim;
        const double coded_bits = codec_->bits_per_value(tensor.role, tensor.head_dim);
        const std::int64_t hot_pages = (tensor.n_rows - tensor.n_coded + kPageTokens - 1) / kPageTokens;
        const std::int64_t sinks =
            coded_bits < kExactBits ? std::min<std::int64_t>(exact_.sinks, tensor.n_coded) : 0;
        bits += row *
                (coded_bits * double(tensor.n_coded) + kExactBits * double(sinks + hot_pages * kPageTokens));
    }
    return bits / 8;
}

double CodedRows::values() const {
    double values = 0;
    for (const auto& [name, tensor] : tensors_) {
        values += double(tensor.n_rows) * tensor.n_head * tensor.head_dim;
    }
    return values;
}

bool CodedRows::has_coded_rows() const {
    return std::any_of(tensors_.begin(), tensors_.end(),
                       [](const auto& tensor) { return tensor.second.n_coded > 0; });
}

void CodedRows::check() const {
    if (!fault_.empty()) throw std::runtime_error(fault_);
}

}  // namespace mixed_kv::tools
