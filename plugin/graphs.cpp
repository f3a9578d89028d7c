#include "graphs.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "thread_sanitizer.h"

namespace mixed_kv::plugin {
namespace {

// Address space; graphs of a hundred contexts touch a small part of it. More is added when it is used up.
constexpr std::size_t kArenaBytes = std::size_t(4) << 20;
constexpr std::size_t kSmallestGraph = 4;
constexpr std::size_t kSizeClasses = 24;

std::size_t nodes_of_class(std::size_t size_class) { return kSmallestGraph << size_class; }

// Things that are made once and then taken and given back. Giving back cannot fail.
template <typename T>
class Stock {
  public:
    T* take() noexcept {
        if (items_.empty()) return nullptr;
        T* item = items_.back();
        items_.pop_back();
        return item;
    }
    void give_back(T* item) noexcept { items_.push_back(item); }
    void expect_one_more() { items_.reserve(++n_made_); }

  private:
    std::vector<T*> items_;
    std::size_t n_made_ = 0;
};

// ggml_init calls ggml_abort where there is no memory for the few bytes of a context. Its abort callback is
// the one way to go on: from the callback back to here, over two frames of C that hold nothing. Done once,
// when the plugin is loaded, and again when the arena is used up.
std::jmp_buf back_to_init;
pthread_t initialising;
ggml_abort_callback_t hosts_callback = nullptr;

void on_abort(const char* message) {
    if (pthread_equal(initialising, pthread_self()) != 0) std::longjmp(back_to_init, 1);
    if (hosts_callback != nullptr) hosts_callback(message);  // another thread's, which ends the process
}

ggml_context* try_init(const ggml_init_params& parameters) {
    ggml_context* volatile context = nullptr;
    initialising = pthread_self();
    hosts_callback = ggml_set_abort_callback(on_abort);
    if (setjmp(back_to_init) == 0) context = ggml_init(parameters);
    ggml_set_abort_callback(hosts_callback);
    return context;
}

}  // namespace

struct CustomNode::Slot {
    Function fn = nullptr;
    void* data = nullptr;
    ggml_tensor* tensor = nullptr;
    float unused = 0;  // the tensor's only element
    static void run(ggml_tensor*, int thread, int, void* slot) {
        const auto& self = *static_cast<const Slot*>(slot);
        order_after(self.data);
        self.fn(thread, self.data);
        order_before(self.data);
    }
};

class Arena {
  public:
    static Arena& instance() {
        static Arena* arena = new Arena;  // never destroyed: backends may outlive static destruction
        return *arena;
    }

    Stock<CustomNode::Slot> slots;
    std::array<Stock<ggml_cgraph>, kSizeClasses> graphs;

    ggml_cgraph* new_graph(std::size_t size_class) {
        const std::size_t n = nodes_of_class(size_class);
        graphs[size_class].expect_one_more();
        return ggml_new_graph_custom(context_with(ggml_graph_overhead_custom(n, false)), n, false);
    }

    CustomNode::Slot* new_slot() {
        slots.expect_one_more();
        auto slot = std::make_unique<CustomNode::Slot>();
        slot->tensor = ggml_custom_4d(context_with(ggml_tensor_overhead()), GGML_TYPE_F32, 1, 1, 1, 1,
                                      nullptr, 0, CustomNode::Slot::run, GGML_N_TASKS_MAX, slot.get());
        slot->tensor->data = &slot->unused;
        slot->tensor->flags |= GGML_TENSOR_FLAG_COMPUTE;
        return slot.release();
    }

  private:
    Arena() { add_context(kArenaBytes); }

    ggml_context* context_with(std::size_t bytes) {
        if (ggml_used_mem(context_) + bytes + ggml_tensor_overhead() > ggml_get_mem_size(context_))
            add_context(std::max(kArenaBytes, 2 * bytes));
        return context_;
    }

    void add_context(std::size_t bytes) {
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        ggml_context* context = try_init({bytes, memory, true});
        if (context == nullptr) {
            munmap(memory, bytes);
            throw std::bad_alloc();
        }
        context_ = context;
    }

    ggml_context* context_ = nullptr;
};

std::mutex& graphs_mutex() {
    static std::mutex mutex;
    return mutex;
}

void prepare_graphs() { Arena::instance(); }

Graph::Graph(std::size_t n_nodes) : size_class_(0) {
    while (nodes_of_class(size_class_) < n_nodes) {
        if (++size_class_ == kSizeClasses) throw std::bad_alloc();
    }
    Arena& arena = Arena::instance();
    const std::lock_guard<std::mutex> lock(graphs_mutex());
    graph_ = arena.graphs[size_class_].take();
    if (graph_ == nullptr) graph_ = arena.new_graph(size_class_);
    ggml_graph_clear(graph_);
}

Graph::~Graph() {
    Arena& arena = Arena::instance();
    const std::lock_guard<std::mutex> lock(graphs_mutex());
    arena.graphs[size_class_].give_back(graph_);
}

CustomNode::CustomNode(Function fn, void* data) {
    Arena& arena = Arena::instance();
    const std::lock_guard<std::mutex> lock(graphs_mutex());
    slot_ = arena.slots.take();
    if (slot_ == nullptr) slot_ = arena.new_slot();
    slot_->fn = fn;
    slot_->data = data;
}

CustomNode::~CustomNode() {
    Arena& arena = Arena::instance();
    const std::lock_guard<std::mutex> lock(graphs_mutex());
    arena.slots.give_back(slot_);
}

ggml_tensor* CustomNode::get() const noexcept { return slot_->tensor; }

}  // namespace mixed_kv::plugin
