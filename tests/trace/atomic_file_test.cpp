// A trace appears whole or not at all, whatever goes wrong: full disks, limits, permissions, kill -9.

#include "trace/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/gguf_reader.h"
#include "trace/gguf_writer.h"
#include "trace/output_file.h"
#include "trace_test_support.h"

namespace mixed_kv::trace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kOk = 0;
constexpr int kWrongMessage = 1;
constexpr int kLeftovers = 2;
constexpr int kTargetChanged = 3;
constexpr int kCannotSetUp = 77;

std::span<const std::byte> raw(std::string_view text) { return std::as_bytes(std::span(text)); }

// Writes a file of n_tensors tensors of 64 KiB, all bytes `value`.
void write_sample(const std::filesystem::path& path, int n_tensors, uint8_t value,
                  const GgufWriterOptions& options) {
    const std::vector<std::byte> data(64 * 1024, std::byte{value});
    GgufStreamWriter writer(path, options);
    writer.set("value", value);
    for (int i = 0; i < n_tensors; ++i) {
        writer.add_tensor("tensor-" + std::to_string(i), GgmlType::i8, {64 * 1024, 1, 1, 1}, data);
    }
    writer.finish();
}

TEST(AtomicFile, AppearsOnlyWhenPublished) {
    for (const TempFile temp : {TempFile::unnamed_if_possible, TempFile::named}) {
        const TempFolder folder;
        const auto path = folder / "target";
        write_file(path, raw("old"));
        {
            AtomicFile discarded(path, 0, temp);
            discarded.write_at(0, raw("never seen"));
            EXPECT_EQ(read_text(path), "old");
        }
        EXPECT_THAT(folder.entries(), ElementsAre("target"));
        AtomicFile file(path, 0, temp);
        file.write_at(4, raw("new"));
        file.write_at(0, raw("very"));
        EXPECT_EQ(read_text(path), "old");
        file.publish();
        EXPECT_EQ(read_text(path), "verynew");
        EXPECT_THAT(folder.entries(), ElementsAre("target"));
    }
}

TEST(AtomicFile, KeepsPermissionsAndFollowsLinks) {
    const TempFolder folder;
    const auto path = folder / "target";
    write_file(path, raw("old"));
    ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
    std::filesystem::create_symlink("target", folder / "link");
    AtomicFile file(folder / "link");
    file.write_at(0, raw("new"));
    file.publish();
    EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
    EXPECT_EQ(read_text(path), "new");
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0640u);
}

TEST(AtomicFile, RefusesImpossibleTargets) {
    const TempFolder folder;
    write_file(folder / "file", raw("x"));
    std::filesystem::create_directory(folder / "folder");
    const auto message = [](const std::filesystem::path& path) {
        return error_of([&] { AtomicFile file(path); });
    };
    EXPECT_THAT(message("/dev/full"),
                HasSubstr("cannot write '/dev/full': it exists and is not a regular file"));
    EXPECT_THAT(message("/dev/null"), HasSubstr("not a regular file"));
    EXPECT_THAT(message(folder / "folder"), HasSubstr("not a regular file"));
    EXPECT_THAT(message(folder / "file" / "below"), HasSubstr("cannot open its folder: Not a directory"));
    EXPECT_THAT(message(folder / "missing" / "file"), HasSubstr("cannot open its folder: No such file"));
    EXPECT_THAT(message(folder.path() / ""), HasSubstr("no file name"));
    EXPECT_THAT(message(folder / std::string(300, 'n')), HasSubstr("File name too long"));
    EXPECT_THAT(folder.entries(), ElementsAre("file", "folder"));
}

TEST(OutputFile, ReplacesInOneStepAndWritesThroughPipes) {
    const TempFolder folder;
    const auto path = folder / "table";
    write_output_file(path, "old and long");
    write_output_file(path, "new");
    EXPECT_EQ(read_text(path), "new");
    EXPECT_THAT(folder.entries(), ElementsAre("table"));
    write_output_file("/dev/null", "nothing");
    EXPECT_THAT(error_of([&] { write_output_file("/dev/full", "text"); }),
                HasSubstr("cannot write '/dev/full': No space left on device"));
    EXPECT_THAT(error_of([&] { write_output_file(folder / "missing" / "table", "text"); }),
                HasSubstr("cannot open its folder: No such file"));
}

TEST(AtomicFile, RefusesBeforehandWhatCannotFit) {
    const TempFolder folder;
    EXPECT_THAT(error_of([&] { AtomicFile file(folder / "huge", uint64_t{1} << 60); }),
                HasSubstr("about 1152921504606846976 bytes are needed, "));
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(AtomicFile, RemovesOnlyStaleFilesOfTheSameTarget) {
    const TempFolder folder;
    const auto path = folder / "t.gguf";
    write_file(folder / ".t.gguf.123-4.partial", raw("stale"));
    write_file(folder / ".t.gguf.extra.123-4.partial", raw("another target's"));
    write_file(folder / ".t.gguf.notes.partial", raw("not ours"));
    AtomicFile alive(path, 0, TempFile::named);
    const AtomicFile second(path, 0, TempFile::unnamed_if_possible);
    EXPECT_EQ(folder.entries().size(), 3u);
    alive.write_at(0, raw("whole"));
    alive.publish();
    EXPECT_EQ(read_text(path), "whole");
    EXPECT_THAT(folder.entries(),
                ElementsAre(".t.gguf.extra.123-4.partial", ".t.gguf.notes.partial", "t.gguf"));
}

// Runs in a child that may drop privileges or mount things. The old target must survive.
int expect_refusal(const std::filesystem::path& path, const char* message, const GgufWriterOptions& options) {
    const std::string error = error_of([&] { write_sample(path, 400, 1, options); });
    if (error.find(message) == std::string::npos || error.find(path.string()) == std::string::npos) {
        std::fprintf(stderr, "message: %s\n", error.c_str());
        return kWrongMessage;
    }
    for (const auto& entry : std::filesystem::directory_iterator(path.parent_path())) {
        if (entry.path().filename() != path.filename()) {
            std::fprintf(stderr, "left over: %s\n", entry.path().c_str());
            return kLeftovers;
        }
    }
    return read_text(path) == "old" ? kOk : kTargetChanged;
}

#define EXPECT_CHILD_OK(status)                                                           \
    do {                                                                                  \
        const int child_status = (status);                                                \
        ASSERT_TRUE(WIFEXITED(child_status)) << "wait status " << child_status;           \
        if (WEXITSTATUS(child_status) == kCannotSetUp) {                                  \
            GTEST_SKIP() << "this needs the right to mount or to change the user";        \
        }                                                                                 \
        EXPECT_EQ(WEXITSTATUS(child_status), kOk) << "1 message, 2 left over, 3 changed"; \
    } while (false)

// SIGXFSZ must not end the process either.
TEST(AtomicFile, FileSizeLimit) {
    for (const TempFile temp : {TempFile::unnamed_if_possible, TempFile::named}) {
        const TempFolder folder;
        write_file(folder / "t.gguf", raw("old"));
        EXPECT_CHILD_OK(in_child([&] {
            const struct rlimit limit = {5'000'000, 5'000'000};
            ::setrlimit(RLIMIT_FSIZE, &limit);
            return expect_refusal(folder / "t.gguf", "File too large", {.temp = temp});
        }));
    }
}

bool mount_tmpfs(const std::filesystem::path& at, const char* options) {
    return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           ::mount("tmpfs", at.c_str(), "tmpfs", 0, options) == 0;
}

TEST(AtomicFile, FullFileSystem) {
    for (const TempFile temp : {TempFile::unnamed_if_possible, TempFile::named}) {
        const TempFolder folder;
        EXPECT_CHILD_OK(in_child([&] {
            if (!mount_tmpfs(folder.path(), "size=16m")) {
                return kCannotSetUp;
            }
            write_file(folder / "t.gguf", raw("old"));
            const int status = expect_refusal(folder / "t.gguf", "No space left on device", {.temp = temp});
            return status != kOk ? status
                                 : expect_refusal(folder / "t.gguf", "bytes are needed",
                                                  {.expected_bytes = 26'000'000, .temp = temp});
        }));
    }
}

TEST(AtomicFile, ReadOnlyFileSystem) {
    const TempFolder folder;
    EXPECT_CHILD_OK(in_child([&] {
        if (!mount_tmpfs(folder.path(), "size=1m")) {
            return kCannotSetUp;
        }
        write_file(folder / "t.gguf", raw("old"));
        if (::mount(nullptr, folder.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) {
            return kCannotSetUp;
        }
        return expect_refusal(folder / "t.gguf", "Read-only file system", {});
    }));
}

TEST(AtomicFile, ReadOnlyFolderAndFile) {
    constexpr uid_t kNobody = 65534;
    const TempFolder folder;
    write_file(folder / "t.gguf", raw("old"));
    // Permissions do not bind root: another user tries.
    const auto as_nobody = [&] { return ::geteuid() != 0 || ::setuid(kNobody) == 0; };
    ASSERT_EQ(::chmod((folder / "t.gguf").c_str(), 0666), 0);
    ASSERT_EQ(::chmod(folder.path().c_str(), 0555), 0);
    EXPECT_CHILD_OK(in_child([&] {
        return as_nobody() ? expect_refusal(folder / "t.gguf", "Permission denied", {}) : kCannotSetUp;
    }));
    ASSERT_EQ(::chmod((folder / "t.gguf").c_str(), 0444), 0);
    ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
    EXPECT_CHILD_OK(in_child([&] {
        return as_nobody() ? expect_refusal(folder / "t.gguf", "it exists and cannot be written", {})
                           : kCannotSetUp;
    }));
}

// Kills a child that saves one generation after the other. Afterwards the target is absent or one whole
// generation, and the next save leaves nothing else in the folder.
class KilledWhileSaving : public ::testing::TestWithParam<TempFile> {};

TEST_P(KilledWhileSaving, LeavesAWholeFileOrNone) {
    constexpr int kKills = 20;
    constexpr int kTensors = 40;
    std::mt19937 random(12345);
    int with_file = 0;
    for (int kill = 0; kill < kKills; ++kill) {
        const TempFolder folder;
        const auto path = folder / "t.gguf";
        const pid_t child = ::fork();
        if (child == 0) {
            for (uint8_t generation = 1;; generation = static_cast<uint8_t>(generation % 100 + 1)) {
                try {
                    // Without a header estimate: the data are moved, which is one more moment to be killed
                    // in.
                    write_sample(path, kTensors, generation, {.expected_kv_bytes = 0, .temp = GetParam()});
                } catch (...) {
                    ::_exit(1);
                }
            }
        }
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 100'000));
        ::kill(child, SIGKILL);
        int status = 0;
        ::waitpid(child, &status, 0);
        ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself, status " << status;
        if (std::filesystem::exists(path)) {
            ++with_file;
            const GgufReader file(path);
            ASSERT_EQ(file.n_tensors(), static_cast<size_t>(kTensors));
            const auto generation = std::byte{file.get<uint8_t>("value")};
            for (size_t i = 0; i < file.n_tensors(); ++i) {
                for (const std::byte b : file.read_bytes(file.tensor(i))) {
                    ASSERT_EQ(b, generation);
                }
            }
        }
        for (const std::string& name : folder.entries()) {
            EXPECT_TRUE(name == "t.gguf" || (name.starts_with(".t.gguf.") && name.ends_with(".partial")))
                << name;
        }
        write_sample(path, 1, 7, {.temp = GetParam()});
        EXPECT_THAT(folder.entries(), ElementsAre("t.gguf"));
    }
    RecordProperty("kills_after_a_first_file", with_file);
}

INSTANTIATE_TEST_SUITE_P(Temp, KilledWhileSaving,
                         ::testing::Values(TempFile::unnamed_if_possible, TempFile::named),
                         [](const auto& test) {
                             return test.param == TempFile::named ? "named" : "unnamed";
                         });

}  // namespace
}  // namespace mixed_kv::trace::testing
