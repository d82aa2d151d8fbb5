#include "instruction_sets.h"

#include <cstdlib>
#include <stdexcept>

namespace arkfast {
namespace {

struct Candidate {
  const Kernel* kernel;
  bool supported;
};

std::vector<Candidate> candidates() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return {{&kAvx512Kernel, avx512}, {&kAvx2Kernel, avx2}, {&kBaselineKernel, true}, {&kGenericKernel, true}};
#else
  return {{&kGenericKernel, true}};
#endif
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto& candidate : candidates()) {
    if (candidate.supported) names.emplace_back(candidate.kernel->name);
  }
  return names;
}

const Kernel& choose_kernel(const std::string& name) {
  std::string wanted = name, source = "instruction_set = '";
  if (wanted.empty()) {
    const char* variable = std::getenv("ARKFAST_ISA");
    if (variable != nullptr) wanted = variable;
    source = "environment variable ARKFAST_ISA = '";
  }
  for (const auto& candidate : candidates()) {
    if (candidate.supported && (wanted.empty() || wanted == candidate.kernel->name)) return *candidate.kernel;
  }
  throw std::invalid_argument(source + wanted + "': not an instruction set that this machine supports; choose one of " +
                              joined(instruction_sets()));
}

}  // namespace arkfast
