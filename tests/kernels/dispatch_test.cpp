#include <cstdlib>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/error.h"

namespace mixed_kv::testing {
namespace {

TEST(Dispatch, ScalarIsLastAndAlwaysSupported) {
    ASSERT_FALSE(compiled_isas().empty());
    EXPECT_EQ(compiled_isas().back(), "scalar");
    EXPECT_EQ(supported_isas().back(), "scalar");
}

TEST(Dispatch, EmptyNameMeansTheFastest) { EXPECT_EQ(kernel_set("").name, supported_isas().front()); }

TEST(Dispatch, NamesSelectTheirSet) {
    for (const std::string_view isa : supported_isas()) {
        EXPECT_EQ(kernel_set(isa).name, isa);
    }
}

TEST(Dispatch, UnknownNamesAreRefusedWithTheValidOnes) {
    for (const char* name : {"sse9", "AVX2", "avx2 ", "avx"}) {
        try {
            kernel_set(name);
            FAIL() << name << " was accepted";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(name), std::string::npos);
            EXPECT_NE(std::string(error.what()).find("scalar"), std::string::npos);
        }
    }
}

TEST(Dispatch, RequiredInstructionSetsArePresent) {
    if (required_isas().empty()) {
        GTEST_SKIP() << "MIXED_KV_REQUIRE_ISA names none";
    }
    for (const std::string_view isa : required_isas()) {
        EXPECT_TRUE(is_supported(isa)) << "MIXED_KV_REQUIRE_ISA asks for " << isa;
    }
}

// active_kernel_set() reads the environment once per process, so each value is tried in a child.
TEST(DispatchDeathTest, EnvironmentForcesASet) {
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
    const auto run = [](const char* value) {
        setenv("MIXED_KV_ISA", value, 1);
        try {
            std::fprintf(stderr, "active %s", active_kernel_set().name);
        } catch (const Error& error) {
            std::fprintf(stderr, "%s", error.what());
        }
        std::exit(0);
    };
    EXPECT_EXIT(run("scalar"), ::testing::ExitedWithCode(0), "active scalar");
    EXPECT_EXIT(run(""), ::testing::ExitedWithCode(0), "active " + std::string(supported_isas().front()));
    EXPECT_EXIT(run("bogus"), ::testing::ExitedWithCode(0),
                "MIXED_KV_ISA: unknown instruction set 'bogus'.*scalar");
}

}  // namespace
}  // namespace mixed_kv::testing
