#pragma once

#include <cstddef>
#include <mutex>

#include "ggml.h"

namespace mixed_kv::plugin {

// Graphs of our own for the host's CPU backend. ggml ends the process when it has no memory for a context, so
// there is one for the process, made when the plugin is loaded; graphs and nodes in it are used again.

// Throws std::bad_alloc.
void prepare_graphs();
// Of what is taken and given back.
std::mutex& graphs_mutex();

// An empty graph with room for n nodes. Throws std::bad_alloc.
class Graph {
  public:
    explicit Graph(std::size_t n_nodes);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    void add(ggml_tensor* node) { ggml_graph_add_node(graph_, node); }
    ggml_cgraph* get() const noexcept { return graph_; }

  private:
    std::size_t size_class_;
    ggml_cgraph* graph_;
};

// A node that calls fn(thread, data) on every thread of the pool that computes it. Throws std::bad_alloc.
class CustomNode {
  public:
    using Function = void (*)(int thread, void* data);
    CustomNode(Function fn, void* data);
    ~CustomNode();
    CustomNode(const CustomNode&) = delete;
    CustomNode& operator=(const CustomNode&) = delete;

    ggml_tensor* get() const noexcept;

  private:
    struct Slot;
    friend class Arena;  // of all graphs
    Slot* slot_;
};

}  // namespace mixed_kv::plugin
