// Writes the seed files of fuzz/corpus/gguf_reader into a folder: small traces of every form. Run it again
// after a change of the trace schema:  make_seeds fuzz/corpus/gguf_reader

#include <cstdio>
#include <filesystem>

#include "mixed_kv/error.h"
#include "trace/trace_writer.h"
#include "trace_test_support.h"

using namespace mixed_kv::trace;
using namespace mixed_kv::trace::testing;

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: make_seeds FOLDER\n");
        return 2;
    }
    const std::filesystem::path folder = argv[1];
    try {
        write_file(folder / "sample.gguf", sample_gguf());
        for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
            const std::string suffix = form == TraceForm::compact ? "-compact.gguf" : ".gguf";
            for (const CacheKind cache : {CacheKind::standard, CacheKind::mixed}) {
                SampleShape shape;
                shape.cache = cache;
                shape.head_dim = 2;
                shape.n_head = 2;
                shape.n_head_kv = 1;
                shape.n_used = 70;
                shape.hot_rows = 4;
                shape.with_sinks = true;
                TraceWriter writer(folder / ((cache == CacheKind::mixed ? "mixed" : "standard") + suffix),
                                   {.form = form, .expected_records = 0});
                for (int step = 0; step < 2; ++step) {
                    ++shape.n_used;
                    writer.append(sample_record(0, step, shape));
                }
                writer.finish();
            }
        }
    } catch (const mixed_kv::Error& error) {
        std::fprintf(stderr, "make_seeds: %s\n", error.what());
        return 1;
    }
}
