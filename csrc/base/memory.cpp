#include "base/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace mmengine {
namespace {

constexpr std::int64_t kUnknown = std::numeric_limits<std::int64_t>::max();

// The number behind `key` in a file of "key number" lines.
std::int64_t field(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  std::int64_t value = 0;
  while (file >> word) {
    if (word == key && file >> value) return value;
    file.clear();
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kUnknown;
}

std::int64_t number(const char* path) {  // "max" is no number: unknown
  std::ifstream file(path);
  std::int64_t value = 0;
  return file >> value ? value : kUnknown;
}

// Pages of files count as used in a control group, but are given up under pressure.
std::int64_t control_group_bytes() {
  const std::int64_t limit = number("/sys/fs/cgroup/memory.max");
  const std::int64_t current = number("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown || current == kUnknown) return kUnknown;
  const std::int64_t files = field("/sys/fs/cgroup/memory.stat", "inactive_file");
  return std::max<std::int64_t>(limit - current + (files == kUnknown ? 0 : files), 0);
}

}  // namespace

std::int64_t available_memory_bytes() {
  const std::int64_t kib = field("/proc/meminfo", "MemAvailable:");
  const std::int64_t system = kib == kUnknown ? kUnknown : kib * 1024;
  return std::min(system, control_group_bytes());
}

}  // namespace mmengine
