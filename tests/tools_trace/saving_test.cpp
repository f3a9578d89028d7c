// Saving by the real kqv-trace-monitor when it is killed, or the disk is full, read-only or no disk at all:
// under the final name there is what was there before or a whole trace, and every failure is one clear line.
#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <thread>

#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

namespace fs = std::filesystem;
using std::chrono::duration;
using std::chrono::steady_clock;

void write_text(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::string fresh_folder(const std::string& name) {
    fs::create_directory(scratch(name));
    return scratch(name);
}

std::vector<std::string> entries(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

// About 10 MB of trace in well under a second.
std::vector<std::string> monitor_arguments(const std::string& trace) {
    return {"-m",     random_model("llama"),
            "-p",     letters(500),
            "-t",     "1",
            "-fa",    "on",
            "-n",     "4",
            "-ub",    "64",
            "--seed", "1",
            "-c",     "1024",
            "-q",     "--save-gguf",
            trace};
}

// A running kqv-trace-monitor; killed and waited for at the latest with the object.
class Monitor {
  public:
    explicit Monitor(const std::string& trace) {
        std::vector<std::string> texts = monitor_arguments(trace);
        texts.insert(texts.begin(), MIXED_KV_BIN_DIR "/kqv-trace-monitor");
        std::vector<char*> argv;
        for (std::string& text : texts) argv.push_back(text.data());
        argv.push_back(nullptr);
        const std::string errors = scratch("monitor.err");
        pid_ = ::fork();
        if (pid_ == 0) {
            const int null = ::open("/dev/null", O_RDWR);
            const int err = ::open(errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
            ::dup2(null, 0);
            ::dup2(null, 1);
            ::dup2(err, 2);
            ::execv(argv[0], argv.data());
            ::_exit(127);
        }
    }
    ~Monitor() { kill(); }
    Monitor(const Monitor&) = delete;
    Monitor& operator=(const Monitor&) = delete;

    // Waits until it holds a file in this folder open: from then on it is saving. False: it ended before.
    bool wait_for_saving(const std::string& folder) {
        const std::string fds = "/proc/" + std::to_string(pid_) + "/fd";
        while (!ended()) {
            std::error_code ignored;
            for (const auto& fd : fs::directory_iterator(fds, ignored)) {
                const std::string target = fs::read_symlink(fd.path(), ignored).string();
                if (target.starts_with(folder + "/")) return true;
            }
            std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
        return false;
    }
    bool ended() {
        if (!waited_) waited_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
        return waited_;
    }
    // The wait status.
    int wait() {
        if (!waited_) waited_ = ::waitpid(pid_, &status_, 0) == pid_;
        return status_;
    }
    int kill() {
        if (!waited_) ::kill(pid_, SIGKILL);
        return wait();
    }
    static std::string errors() { return read_text(scratch("monitor.err")); }

  private:
    pid_t pid_ = -1;
    int status_ = 0;
    bool waited_ = false;
};

TEST(Saving, KilledAtTwentyRandomMoments) {
    const std::string folder = fresh_folder("killed"), path = folder + "/t.gguf";
    steady_clock::time_point start;
    double seconds = 0;  // of saving, undisturbed
    {
        Monitor monitor(path);
        ASSERT_TRUE(monitor.wait_for_saving(folder)) << Monitor::errors();
        start = steady_clock::now();
        ASSERT_EQ(monitor.wait(), 0) << Monitor::errors();
        seconds = duration<double>(steady_clock::now() - start).count();
    }
    const std::string whole = read_text(path);
    ASSERT_GT(whole.size(), 5'000'000U);
    ASSERT_EQ(read_trace(path, {"--summary"}).exit_status, 0);

    std::mt19937 random(20);
    std::uniform_real_distribution<double> share(0, 1.1);
    int n_killed = 0;
    for (int i = 0; i < 20; ++i) {
        // Over an old file and over none in turn.
        fs::remove(path);
        if (i % 2 == 0) write_text(path, "old");
        {
            Monitor monitor(path);
            ASSERT_TRUE(monitor.wait_for_saving(folder)) << Monitor::errors();
            std::this_thread::sleep_for(duration<double>(share(random) * seconds));
            n_killed += WIFSIGNALED(monitor.kill());
        }
        // The same run writes the same bytes, so that "whole" means equal.
        const bool exists = fs::exists(path);
        const std::string now = exists ? read_text(path) : "";
        EXPECT_TRUE(now == whole || (i % 2 == 0 ? now == "old" : !exists))
            << "kill " << i << ": " << now.size() << " of " << whole.size() << " bytes";
        for (const std::string& name : entries(folder)) {
            EXPECT_TRUE(name == "t.gguf" || (name.starts_with(".t.gguf.") && name.ends_with(".partial")))
                << name;
        }
    }
    EXPECT_GE(n_killed, 10) << "most of the kills should hit a run that is still going";
    EXPECT_EQ(Monitor(path).wait(), 0) << Monitor::errors();  // the next run also removes what a kill left
    EXPECT_EQ(entries(folder), std::vector<std::string>{"t.gguf"});
}

// --- disks
// ---------------------------------------------------------------------------------------------------

constexpr int kCannotSetUp = 77;

// Runs in a child, which may mount and change its user. What goes wrong there comes back as text.
void expect_in_child(const std::function<std::string()>& body) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
        const std::string problem = body();
        if (::write(ends[1], problem.data(), problem.size()) < 0) ::_exit(1);
        ::_exit(problem == "cannot set up" ? kCannotSetUp : 0);
    }
    ::close(ends[1]);
    std::string problem;
    char buffer[4096];
    for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) problem.append(buffer, size_t(n));
    ::close(ends[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << "wait status " << status;
    if (WEXITSTATUS(status) == kCannotSetUp) {
        GTEST_SKIP() << "this needs the right to mount file systems (root)";
    }
    EXPECT_EQ(problem, "");
}

// In a mount namespace of the child's own, so that nothing has to be unmounted.
bool mount_tmpfs(const std::string& at, const char* options) {
    return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           ::mount("tmpfs", at.c_str(), "tmpfs", 0, options) == 0;
}

// "" if it failed with one line that contains `reason`, and the folder holds `names` with an old t.gguf.
std::string refused(int exit_status, const std::string& errors, const std::string& reason,
                    const std::string& folder, const std::vector<std::string>& names) {
    if (exit_status != 1) return "exit status " + std::to_string(exit_status) + ": " + errors;
    if (std::count(errors.begin(), errors.end(), '\n') != 1 || errors.find(reason) == std::string::npos) {
        return "not one line about '" + reason + "': " + errors;
    }
    if (read_text(folder + "/t.gguf") != "old") return "the old file changed";
    if (entries(folder) != names) return "left over: " + testing::PrintToString(entries(folder));
    return "";
}

std::string refused(const CommandResult& result, const std::string& reason, const std::string& folder) {
    return refused(result.exit_status, result.err, reason, folder, {"t.gguf"});
}

TEST(Saving, TooLittleRoomIsRefusedBeforehand) {
    const std::string folder = fresh_folder("small");
    random_model("llama");
    expect_in_child([&]() -> std::string {
        if (!mount_tmpfs(folder, "size=2m")) return "cannot set up";
        write_text(folder + "/t.gguf", "old");
        return refused(run_tool("kqv-trace-monitor", monitor_arguments(folder + "/t.gguf")), "are free in",
                       folder);
    });
}

// There is room when the run begins; then somebody else takes it.
TEST(Saving, DiskThatFillsUpMeanwhile) {
    const std::string folder = fresh_folder("full");
    random_model("llama");
    expect_in_child([&]() -> std::string {
        if (!mount_tmpfs(folder, "size=16m")) return "cannot set up";
        write_text(folder + "/t.gguf", "old");
        Monitor monitor(folder + "/t.gguf");
        if (!monitor.wait_for_saving(folder)) return "ended before it saved: " + Monitor::errors();
        {
            std::ofstream other(folder + "/other", std::ios::binary);
            const std::string block(64 * 1024, 'x');
            while (other.write(block.data(), std::streamsize(block.size())).flush()) {
            }
        }
        const int status = monitor.wait();
        return refused(WIFEXITED(status) ? WEXITSTATUS(status) : 128, Monitor::errors(),
                       "No space left on device", folder, {"other", "t.gguf"});
    });
}

TEST(Saving, ReadOnlyFileSystem) {
    const std::string folder = fresh_folder("read-only");
    random_model("llama");
    expect_in_child([&]() -> std::string {
        if (!mount_tmpfs(folder, "size=16m")) return "cannot set up";
        write_text(folder + "/t.gguf", "old");
        if (::mount(nullptr, folder.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0)
            return "cannot set up";
        return refused(run_tool("kqv-trace-monitor", monitor_arguments(folder + "/t.gguf")),
                       "Read-only file system", folder);
    });
}

// Permissions do not bind root, so root tries it as another user, if that one can run the program at all.
TEST(Saving, ReadOnlyFolder) {
    constexpr uid_t kNobody = 65534;
    const std::string folder = fresh_folder("locked");
    random_model("llama");
    write_text(folder + "/t.gguf", "old");
    ASSERT_EQ(::chmod((folder + "/t.gguf").c_str(), 0666), 0);
    ASSERT_EQ(::chmod(folder.c_str(), 0555), 0);
    ASSERT_EQ(::chmod(scratch_folder().c_str(), 0777), 0);  // where run_tool() keeps what the program says
    ASSERT_EQ(::chmod(random_model("llama").c_str(), 0644), 0);
    for (const char* name : {"/stdout", "/stderr"}) fs::remove(scratch_folder() + name);
    expect_in_child([&]() -> std::string {
        if (::geteuid() == 0 && ::setuid(kNobody) != 0) return "cannot set up";
        if (run_tool("kqv-trace-monitor", {"--help"}).exit_status != 0) return "cannot set up";
        return refused(run_tool("kqv-trace-monitor", monitor_arguments(folder + "/t.gguf")),
                       "Permission denied", folder);
    });
    for (const char* name : {"/stdout", "/stderr"}) fs::remove(scratch_folder() + name);
    ASSERT_EQ(::chmod(folder.c_str(), 0755), 0);
}

// /dev/full takes no byte, a folder is no file, and a folder that does not exist holds none.
TEST(Saving, OutputThatIsNoFile) {
    for (const std::string& path :
         {std::string("/dev/full"), scratch("no-such-folder/x.gguf"), scratch_folder()}) {
        const CommandResult result = run_tool("kqv-trace-monitor", monitor_arguments(path));
        EXPECT_EQ(result.exit_status, 1) << path;
        EXPECT_EQ(result.err_lines().size(), 1U) << result.err;
        EXPECT_NE(result.err.find("cannot write '" + path + "'"), std::string::npos) << result.err;
    }
}

// Reports that cannot be written are failures too, also on standard output.
TEST(Saving, ReportsThatCannotBeWritten) {
    const std::string path = scratch("reports.gguf");
    record(random_model("llama"), path, {"-p", "", "-n", "2"});
    for (const char* option : {"--csv", "--picture"}) {
        const CommandResult result = read_trace(path, {"-q", option, "/dev/full"});
        EXPECT_EQ(result.exit_status, 1) << option;
        EXPECT_NE(result.err.find("cannot write '/dev/full'"), std::string::npos) << result.err;
    }
    const std::string bin = MIXED_KV_BIN_DIR;
    for (const std::string& command :
         {bin + "/kqv-tensor-reader -i " + path, bin + "/kqv-tensor-reader --json -i " + path,
          bin + "/kqv-tensor-reader --list -i " + path, bin + "/kqv-tensor-reader --summary -i " + path,
          bin + "/kqv-trace-diff " + path + " " + path,
          bin + "/kqv-trace-monitor -q -t 1 -fa on -n 2 -p '' -m " + random_model("llama"),
          bin + "/kqv-trace-monitor -t 1 -fa on -n 2 -p '' -m " + random_model("llama")}) {
        const int status = std::system((command + " > /dev/full 2> " + scratch("full.err")).c_str());
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 0) << command;
        EXPECT_NE(read_text(scratch("full.err")).find("error: "), std::string::npos) << command;
    }
}

}  // namespace

}  // namespace mixed_kv::test
