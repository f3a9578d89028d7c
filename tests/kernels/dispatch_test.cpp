#if defined(__x86_64__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "kernels/arm_features.h"
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
            EXPECT_NE(std::string(error.what())
                          .find("this CPU, or its operating system, cannot run '" + std::string(isa)),
                      std::string::npos);
        }
    }
    if (refused == 0) {
        GTEST_SKIP() << "this CPU runs every compiled set";
    }
}

#if defined(__x86_64__)
// Whether /proc/cpuinfo lists all these flags. Linux lists one only if it saves the registers that it needs.
class ListedFlags {
  public:
    ListedFlags() {
        std::ifstream file("/proc/cpuinfo");
        std::string line;
        while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
        }
        if (line.rfind("flags", 0) == 0) {
            std::istringstream words(line.substr(line.find(':') + 1));
            flags_.assign(std::istream_iterator<std::string>(words), {});
        }
    }
    bool empty() const { return flags_.empty(); }
    bool have(std::initializer_list<const char*> names) const {
        return std::all_of(names.begin(), names.end(), [&](const char* name) {
            return std::find(flags_.begin(), flags_.end(), name) != flags_.end();
        });
    }
    bool have_avx2() const { return have({"avx", "avx2", "fma", "f16c", "bmi1", "bmi2"}); }
    bool have_avxvnni() const { return have_avx2() && have({"avx_vnni"}); }
    bool have_avx512() const {
        return have_avx2() && have({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"});
    }
    bool have_amx() const {
        return have_avx512() && have({"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"});
    }

  private:
    std::vector<std::string> flags_;
};

TEST(Dispatch, FeaturesAreThoseThatTheKernelLists) {
    const ListedFlags listed;
    if (listed.empty()) {
        GTEST_SKIP() << "/proc/cpuinfo lists no flags";
    }
    EXPECT_EQ(kernels::cpu_has_avx2(), listed.have_avx2());
    EXPECT_EQ(kernels::cpu_has_avxvnni(), listed.have_avxvnni());
    EXPECT_EQ(kernels::cpu_has_avx512(), listed.have_avx512());
    // Tiles need the operating system's permission, which sandboxes refuse.
    const bool permitted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18L) == 0;
    EXPECT_EQ(kernels::cpu_has_amx(), listed.have_amx() && permitted);
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

// Which set a machine should take: scripts/test-arm64.sh says it for every CPU that it emulates.
TEST(Dispatch, TheExpectedInstructionSetIsTaken) {
    const char* expected = std::getenv("MIXED_KV_EXPECT_ISA");
    if (expected == nullptr) {
        GTEST_SKIP() << "MIXED_KV_EXPECT_ISA names none";
    }
    EXPECT_STREQ(kernel_set("").name, expected);
}

// What operating systems say of Arm CPUs, asked on any machine.
TEST(ArmFeatures, AreReadFromLinuxsAuxiliaryVector) {
    constexpr std::uint64_t kCortexA72 = 0xff;                 // to CRC32
    constexpr std::uint64_t kNeoverseN1 = 0x119fff;            // with ASIMDDP, bit 20
    constexpr std::uint64_t kI8mm = 1 << 13, kOther = 1 << 1;  // of HWCAP2
    const auto a72 = kernels::arm_features_of_linux(kCortexA72, 0);
    EXPECT_FALSE(a72.dotprod || a72.i8mm);
    const auto n1 = kernels::arm_features_of_linux(kNeoverseN1, kOther);
    EXPECT_TRUE(n1.dotprod);
    EXPECT_FALSE(n1.i8mm);
    EXPECT_TRUE(kernels::arm_features_of_linux(kNeoverseN1, kI8mm).i8mm);
    // The i8mm set takes no less than the dotprod set.
    EXPECT_FALSE(kernels::arm_features_of_linux(kCortexA72, kI8mm).i8mm);
}

TEST(ArmFeatures, AreReadFromMacosSysctl) {
    const auto with = [](std::initializer_list<std::string_view> names) {
        return kernels::arm_features_of_macos([names](std::string_view name) {
            return std::find(names.begin(), names.end(), name) != names.end();
        });
    };
    constexpr std::string_view kDotProduct = "hw.optional.arm.FEAT_DotProd",
                               kI8mm = "hw.optional.arm.FEAT_I8MM";
    EXPECT_FALSE(with({}).dotprod || with({}).i8mm);
    EXPECT_TRUE(with({kDotProduct}).dotprod);
    EXPECT_FALSE(with({kDotProduct}).i8mm);
    EXPECT_TRUE(with({kDotProduct, kI8mm}).i8mm);
    EXPECT_FALSE(with({kI8mm}).i8mm);
}

// Says which set MIXED_KV_ISA=value selects, or why none. active_kernel_set() reads the environment once per
// process, so each value is tried in a child.
[[noreturn]] void select(const char* value) {
    setenv("MIXED_KV_ISA", value, 1);
    try {
        std::fprintf(stderr, "active %s", active_kernel_set().name);
    } catch (const Error& error) {
        std::fprintf(stderr, "%s", error.what());
    }
    std::exit(0);
}

TEST(DispatchDeathTest, EnvironmentForcesASet) {
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
    EXPECT_EXIT(select("scalar"), ::testing::ExitedWithCode(0), "active scalar");
    EXPECT_EXIT(select(""), ::testing::ExitedWithCode(0), "active " + std::string(supported_isas().front()));
    EXPECT_EXIT(select("bogus"), ::testing::ExitedWithCode(0),
                "MIXED_KV_ISA: unknown instruction set 'bogus'.*scalar");
    for (const std::string_view isa : compiled_isas()) {
        const std::string name(isa);
        EXPECT_EXIT(select(name.c_str()), ::testing::ExitedWithCode(0),
                    is_supported(isa) ? "active " + name
                                      : "MIXED_KV_ISA: this CPU, or its operating system, cannot run '" +
                                            name + "'.*scalar");
    }
}

#if defined(__x86_64__)
// What sandboxes do: arch_prctl, which gives the permission to use tiles, fails from now on.
bool refuse_arch_prctl() {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{std::size(program), program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0;
}

TEST(DispatchDeathTest, WithoutPermissionForTilesTheNextSetIsTaken) {
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
    // Not asked of the kernel sets: the answer stays for the life of a process, and the children run this
    // too.
    if (!ListedFlags().have_amx()) {
        GTEST_SKIP() << "this machine has no tiles to permit";
    }
    const auto run = [](const char* value) {
        if (!refuse_arch_prctl()) {
            std::fprintf(stderr, "no seccomp");
            std::exit(1);
        }
        select(value);
    };
    EXPECT_EXIT(run(""), ::testing::ExitedWithCode(0), "active avx512");
    EXPECT_EXIT(run("amx"), ::testing::ExitedWithCode(0), "cannot run 'amx'; it can run: avx512");
}
#endif

}  // namespace
}  // namespace mixed_kv::testing
