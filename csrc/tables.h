// Builds what does not depend on the samples: the window and the mel filters.
#pragma once

#include "kernel.h"

namespace arkfast {

// Periodic Hann window; Slaney mel filters (area-normalised triangles, 0 to 8000 Hz), as float32. Throws std::invalid_argument when n_mels
// is outside 1 .. kMaxMels.
Tables make_tables(int n_mels);

}  // namespace arkfast
