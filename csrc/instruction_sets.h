// Which kernels were built and which of them this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernel.h"

namespace arkfast {

// Names of the instruction sets that this machine supports, fastest first.
std::vector<std::string> instruction_sets();

// The kernel of that name; when the name is empty, of the environment variable ARKFAST_ISA; when that is unset or empty too, the fastest.
// Throws std::invalid_argument, listing what is supported, when there is no such kernel here.
const Kernel& choose_kernel(const std::string& name);

}  // namespace arkfast
