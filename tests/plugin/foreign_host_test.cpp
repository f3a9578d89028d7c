// Hosts that the plugin was not built for: it declines in one line, and touches nothing.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace {

using load_t = void* (*)(const char*);

TEST(ForeignHost, ABufferTypeWithMoreMembersIsDeclinedInOneLine) {
    void* host = dlopen(MIXED_KV_API_3_HOST, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(host, nullptr) << dlerror();
    const auto load = reinterpret_cast<load_t>(dlsym(host, "load_plugin_as_api_3"));
    testing::internal::CaptureStderr();
    EXPECT_EQ(load(std::getenv("GGML_BACKEND_PATH")), nullptr);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find('\n'), said.size() - 1) << said;
    EXPECT_NE(said.find("mixed-kv: declined: this host has ggml 0.25.1 ("), std::string::npos) << said;
    EXPECT_NE(
        said.find("its ggml_backend_buffer_type is another; this plugin is for backend API 2 with 2D copies"),
        std::string::npos)
        << said;
}

TEST(ForeignHost, AProgramWithoutGgmlIsDeclinedInOneLine) {
    // Called from here: neither this program nor what it needs is a ggml.
    void* plugin = dlopen(std::getenv("GGML_BACKEND_PATH"), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(plugin, nullptr) << dlerror();
    const auto init = reinterpret_cast<void* (*)()>(dlsym(plugin, "ggml_backend_init"));
    testing::internal::CaptureStderr();
    void* volatile registration = init();
    EXPECT_EQ(registration, nullptr);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("mixed-kv: declined: this host's ggml has no ggml_"), std::string::npos) << said;
}

}  // namespace
