#include "plugin_test.h"

#include <ggml-backend.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <list>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "random_model.h"

namespace mixed_kv::test {

const mixed_kv_api& plugin_api() {
    load_backends();
    ggml_backend_reg_t reg = ggml_backend_reg_by_name(MIXED_KV_REG_NAME);
    if (reg == nullptr) throw std::runtime_error("the plugin is not loaded");
    const auto get =
        reinterpret_cast<mixed_kv_get_api_t>(ggml_backend_reg_get_proc_address(reg, "mixed_kv_get_api"));
    const mixed_kv_api* api = get == nullptr ? nullptr : get(MIXED_KV_API_VERSION);
    if (api == nullptr) throw std::runtime_error("the plugin speaks another version of its interface");
    return *api;
}

const std::string& random_model_file(const RandomModelSpec& spec) {
    struct File {
        File(const RandomModelSpec& spec, const std::string& name)
            : path("/tmp/mixed-kv-test-" + name + "-" + std::to_string(getpid()) + ".gguf") {
            write_random_model(spec, path);
        }
        ~File() { std::remove(path.c_str()); }
        std::string path;
    };
    static std::list<std::pair<RandomModelSpec, File>> files;
    for (const auto& [known, file] : files) {
        if (known == spec) return file.path;
    }
    const std::string name = spec.preset + "-" + std::to_string(files.size());
    return files
        .emplace_back(std::piecewise_construct, std::forward_as_tuple(spec),
                      std::forward_as_tuple(spec, name))
        .second.path;
}

RandomModelSpec mostly_cache(std::uint32_t n_layer, std::uint32_t n_head, std::uint32_t head_dim) {
    RandomModelSpec spec = random_model_spec("llama");
    spec.n_layer = n_layer;
    spec.n_embd = 128;
    spec.n_ff = 64;
    spec.n_vocab = 320;
    spec.n_head = spec.n_head_kv = n_head;
    spec.head_dim = head_dim;
    spec.n_ctx_train = 32768;
    return spec;
}

const std::string& small_model() { return random_model_file(random_model_spec("llama")); }

int TensorPages::cell(std::int64_t index) const {
    const PageCopy& page = pages.at(std::size_t(index / 64));
    const std::uint64_t bit = std::uint64_t(1) << (index % 64);
    if ((page.written & bit) == 0) return MIXED_KV_CELL_EMPTY;
    if (page.state == MIXED_KV_CELL_COLD && (page.overlay & bit) != 0) return MIXED_KV_CELL_OVERLAY;
    return page.state;
}

void PageRecorder::record(const ggml_tensor* view) {
    const mixed_kv_api& api = plugin_api();
    mixed_kv_tensor_info info;
    if (api.tensor_info(view, &info) == 0) return;
    TensorPages& tensor = tensors[info.name];
    tensor.info = info;
    tensor.pages.clear();
    mixed_kv_page page;
    for (std::int64_t i = 0; api.page(view, 0, i, &page) != 0; ++i) {
        PageCopy copy{page.state, page.written, page.overlay, 0, {}};
        if (page.state == MIXED_KV_CELL_COLD) {
            copy.cells = page.blocks[0].cells;
            const auto* bytes = static_cast<const std::byte*>(page.blocks[0].data);
            copy.block.assign(bytes, bytes + info.block_bytes * std::size_t(info.n_head));
        }
        tensor.pages.push_back(std::move(copy));
    }
}

bool PageRecorder::callback(ggml_tensor* node, bool ask, void* data) {
    auto* recorder = static_cast<PageRecorder*>(data);
    if (!recorder->enabled || node->op != GGML_OP_FLASH_ATTN_EXT) return false;
    if (ask) return true;
    recorder->record(node->src[1]);
    recorder->record(node->src[2]);
    return true;
}

}  // namespace mixed_kv::test
