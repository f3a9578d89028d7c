#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "kernels/cpu_features.h"
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

TEST(Dispatch, SetsThatTheCpuCannotRunAreRefused) {
    int refused = 0;
    for (const std::string_view isa : compiled_isas()) {
        if (is_supported(isa)) {
            continue;
        }
        ++refused;
        try {
            kernel_set(isa);
            FAIL() << isa << " was accepted";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("this CPU cannot run '" + std::string(isa)),
                      std::string::npos);
        }
    }
    if (refused == 0) {
        GTEST_SKIP() << "this CPU runs every compiled set";
    }
}

#if defined(__x86_64__)
// Linux lists a feature only if it saves the registers that it needs.
TEST(Dispatch, FeaturesAreThoseThatTheKernelLists) {
    std::ifstream file("/proc/cpuinfo");
    std::string line;
    while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
    }
    if (line.rfind("flags", 0) != 0) {
        GTEST_SKIP() << "/proc/cpuinfo lists no flags";
    }
    std::istringstream words(line.substr(line.find(':') + 1));
    const std::vector<std::string> flags{std::istream_iterator<std::string>(words), {}};
    const auto all = [&](std::initializer_list<const char*> names) {
        for (const char* name : names) {
            if (std::find(flags.begin(), flags.end(), name) == flags.end()) {
                return false;
            }
        }
        return true;
    };
    const bool avx2 = all({"avx", "avx2", "fma", "f16c", "bmi1", "bmi2"});
    EXPECT_EQ(kernels::cpu_has_avx2(), avx2);
    const bool avx512 = avx2 && all({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"});
    EXPECT_EQ(kernels::cpu_has_avx512(), avx512);
    // Tiles need the operating system's permission, which sandboxes refuse.
    const bool amx = avx512 && all({"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"});
    const bool permitted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18L) == 0;
    EXPECT_EQ(kernels::cpu_has_amx(), amx && permitted);
}
#endif

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
    for (const std::string_view isa : compiled_isas()) {
        const std::string name(isa);
        EXPECT_EXIT(run(name.c_str()), ::testing::ExitedWithCode(0),
                    is_supported(isa) ? "active " + name
                                      : "MIXED_KV_ISA: this CPU cannot run '" + name + "'.*scalar");
    }
}

}  // namespace
}  // namespace mixed_kv::testing
