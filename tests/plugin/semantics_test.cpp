// What llama.cpp does with cache cells, with a window over the whole context: storage is exact then, so
// logits must be those of the host's own cache. Cold rows in the same operations are the stress test's
// business.
#include <gtest/gtest.h>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

// Our float32 accumulation against the host's F16 one; a wrong row gives 1e-2 and more.
constexpr double kSameCache = 1e-5;

struct Pair {
    Model host{small_model(), CacheOwner::kHost};
    Model ours{small_model(), CacheOwner::kPlugin};

    // Runs the same steps on both caches and compares what each returns.
    template <typename Fn>
    void compare_runs(const ContextOptions& options, Fn&& steps) {
        Context a(host, options), b(ours, options);
        const Logits expected = steps(a);
        const Logits actual = steps(b);
        const Comparison c = compare(expected, actual);
        EXPECT_TRUE(c.nmse <= kSameCache) << c.text();
    }
};

ContextOptions small_options() {
    ContextOptions options;
    options.n_ctx = 512;
    options.n_ubatch = 64;
    options.n_threads = 1;  // ggml's threads spin for each other: slow where other tests run beside
    return options;
}

std::vector<llama_token> tokens(std::size_t n, int seed) {
    return random_tokens(n, 512, std::uint64_t(seed));
}

}  // namespace

TEST(Semantics, PrefillAndGenerate) {
    Pair().compare_runs(small_options(), [](Context& c) {
        Logits logits = c.decode(tokens(200, 1));
        for (int i = 0; i < 50; ++i) logits.append(c.decode({llama_token(20 + i)}, 200 + i));
        return logits;
    });
}

TEST(Semantics, RollbackAndRewrite) {
    Pair().compare_runs(small_options(), [](Context& c) {
        Logits logits = c.decode(tokens(200, 1));
        c.remove(0, 90, -1);
        logits.append(c.decode(tokens(120, 2), 90));
        return logits;
    });
}

TEST(Semantics, RemoveTheMiddle) {
    Pair().compare_runs(small_options(), [](Context& c) {
        Logits logits = c.decode(tokens(200, 1));
        c.remove(0, 50, 120);
        logits.append(c.decode(tokens(100, 2), 200));
        return logits;
    });
}

TEST(Semantics, ContextShift) {
    Pair().compare_runs(small_options(), [](Context& c) {
        Logits logits = c.decode(tokens(200, 1));
        c.remove(0, 4, 68);
        c.shift(0, 68, -1, -64);
        logits.append(c.decode(tokens(60, 2), 136));
        return logits;
    });
}

TEST(Semantics, SelfExtend) {
    Pair().compare_runs(small_options(), [](Context& c) {
        Logits logits = c.decode(tokens(128, 1));
        c.divide(0, 0, 128, 2);
        logits.append(c.decode(tokens(60, 2), 64));
        return logits;
    });
}

TEST(Semantics, SequencesOnOneStream) {
    ContextOptions options = small_options();
    options.n_seq_max = 4;
    options.kv_unified = true;
    Pair().compare_runs(options, [](Context& c) {
        Logits logits = c.decode(tokens(100, 1), 0, 0);
        logits.append(c.decode(tokens(70, 2), 0, 1));
        c.copy(0, 2);
        logits.append(c.decode(tokens(30, 3), 100, 2));
        logits.append(c.decode(tokens(30, 4), 100, 0));
        c.keep(2);
        logits.append(c.decode(tokens(30, 5), 130, 2));
        return logits;
    });
}

// Sequences whose cells lie apart, as llama-server's slots: a step has one token of each, and some have two.
TEST(Semantics, StepsOfSequencesApart) {
    ContextOptions options = small_options();
    options.n_seq_max = 4;
    options.kv_unified = true;
    for (const int n_threads : {1, 2}) {
        options.n_threads = n_threads;
        Pair().compare_runs(options, [](Context& c) {
            std::vector<int> length = {130, 70, 60, 140};
            for (int s = 0; s < 4; ++s) {
                std::vector<BatchToken> prompt;
                for (int i = 0; i < length[std::size_t(s)]; ++i)
                    prompt.push_back({llama_token(10 + (s * 37 + i * 11) % 400), i, {s}, false});
                c.decode_batch(prompt);
            }
            Logits logits;
            for (int step = 0; step < 3; ++step) {
                std::vector<BatchToken> batch;
                for (int s = 0; s < 4; ++s) {
                    for (int i = 0; i <= s % 2; ++i) {
                        batch.push_back({llama_token(20 + s + step), length[std::size_t(s)]++, {s}, true});
                    }
                }
                logits.append(c.decode_batch(batch));
            }
            return logits;
        });
    }
}

TEST(Semantics, SequencesOnTheirOwnStreams) {
    ContextOptions options = small_options();
    options.n_ctx = 1024;
    options.n_seq_max = 4;
    Pair().compare_runs(options, [](Context& c) {
        Logits logits = c.decode(tokens(100, 1), 0, 0);
        logits.append(c.decode(tokens(70, 2), 0, 1));
        c.copy(0, 2);
        logits.append(c.decode(tokens(30, 3), 100, 2));
        std::vector<BatchToken> mixed;
        for (int i = 0; i < 5; ++i) {
            mixed.push_back({llama_token(30 + i), 100 + i, {0}});
            mixed.push_back({llama_token(60 + i), 70 + i, {1}});
            mixed.push_back({llama_token(90 + i), 130 + i, {2}});
        }
        logits.append(c.decode_batch(mixed));
        return logits;
    });
}

TEST(Semantics, SaveAndRestoreWhole) {
    Pair().compare_runs(small_options(), [](Context& c) {
        Logits logits = c.decode(tokens(200, 1));
        const auto state = c.save();
        logits.append(c.decode(tokens(40, 2), 200));
        c.clear();
        c.restore(state);
        logits.append(c.decode(tokens(40, 3), 200));
        return logits;
    });
}

TEST(Semantics, SaveAndRestoreSequence) {
    ContextOptions options = small_options();
    options.n_seq_max = 2;
    options.kv_unified = true;
    for (const llama_state_seq_flags flags :
         {llama_state_seq_flags(0), llama_state_seq_flags(LLAMA_STATE_SEQ_FLAGS_ON_DEVICE)}) {
        SCOPED_TRACE(flags);
        Pair().compare_runs(options, [&](Context& c) {
            Logits logits = c.decode(tokens(150, 1), 0, 0);
            logits.append(c.decode(tokens(20, 2), 0, 1));
            const auto state = c.save_sequence(0, flags);
            c.remove(0, 100, -1);
            logits.append(c.decode(tokens(30, 3), 100, 0));
            c.restore_sequence(0, state, flags);
            logits.append(c.decode(tokens(30, 4), 150, 0));
            return logits;
        });
    }
}

TEST(Semantics, ClearAndStartAgain) {
    for (bool data : {true, false}) {
        Pair().compare_runs(small_options(), [&](Context& c) {
            Logits logits = c.decode(tokens(200, 1));
            c.clear(data);
            logits.append(c.decode(tokens(150, 2)));
            return logits;
        });
    }
}

TEST(Semantics, OneTokenAtATime) {
    ContextOptions options = small_options();
    options.n_ubatch = 1;
    options.n_batch = 1;
    Pair().compare_runs(options, [](Context& c) { return c.decode(tokens(150, 1)); });
}

TEST(Semantics, FlashAttentionOffIsPinnedAndRight) {
    ContextOptions options = small_options();
    options.flash_attn = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    mixed_kv_counters before, after;
    plugin_api().counters(&before);
    Pair().compare_runs(options, [](Context& c) {
        Logits logits = c.decode(tokens(200, 1));
        c.remove(0, 100, -1);
        logits.append(c.decode(tokens(20, 2), 100));
        return logits;
    });
    plugin_api().counters(&after);
    EXPECT_GT(after.pins, before.pins);
}

TEST(Semantics, DeclaredTypeOtherThanF16IsLeftAlone) {
    ContextOptions options = small_options();
    options.type_k = options.type_v = GGML_TYPE_Q8_0;
    Pair().compare_runs(options, [](Context& c) { return c.decode(tokens(100, 1)); });
}
