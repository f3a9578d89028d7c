#include "common/cpu_topology.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

namespace mixed_kv::tools {

namespace {

std::vector<int> usable_cpu_numbers() {
    std::vector<int> cpus;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &set)) {
                cpus.push_back(cpu);
            }
        }
    }
    return cpus;
}

}  // namespace

int usable_cpus() {
    const int n = static_cast<int>(usable_cpu_numbers().size());
    return n > 0 ? n : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int usable_cores() {
    std::set<std::string> cores;  // the list of a core's threads is the same in all of them
    for (const int cpu : usable_cpu_numbers()) {
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                           "/topology/thread_siblings_list");
        std::string siblings;
        if (!std::getline(file, siblings)) {
            return usable_cpus();
        }
        cores.insert(siblings);
    }
    return cores.empty() ? usable_cpus() : static_cast<int>(cores.size());
}

std::string cpu_model_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("model name", 0) == 0) {
            const std::size_t colon = line.find(": ");
            return colon == std::string::npos ? "" : line.substr(colon + 2);
        }
    }
    return "";
}

}  // namespace mixed_kv::tools
