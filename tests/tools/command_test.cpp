#include <gtest/gtest.h>

#include "command.h"

namespace mixed_kv::test {

TEST(Command, ReportsAnUnknownProgramAndAnExitStatus) {
    EXPECT_EQ(run_tool("no-such-program", {}).exit_status, 127);
    const CommandResult usage = run_tool("make-random-model", {"--arch", "no-such-arch", "--out", "x"});
    EXPECT_NE(usage.exit_status, 0);
    EXPECT_LT(usage.exit_status, 126);
    EXPECT_FALSE(usage.err_lines().empty());
}

}  // namespace mixed_kv::test
