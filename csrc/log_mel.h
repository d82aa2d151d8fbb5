// Whisper's log-mel features. Knows framing, window, mel filters and scaling; knows no Python, no files and no threads.
#pragma once

#include <cstdint>
#include <vector>

#include "real_dft.h"

namespace arkfast {

inline constexpr int kSamplingRate = 16000;  // Hz
inline constexpr int kHop = 160;             // samples from frame to frame: 10 ms
inline constexpr int kWindow = PowerSpectrum400::kSamples;

// Which instruction set the kernels run on: "baseline" is what the compiler assumes for the architecture.
const char* instruction_set();

// A clip of `count` finite samples, to be framed as if zeros followed up to `padded` samples (padded >= count, padded >= kWindow).
struct Clip {
  const float* samples;
  std::int64_t count;
  std::int64_t padded;
};

// Position of the first NaN or infinity in samples[0..count), or -1.
std::int64_t find_nonfinite(const float* samples, std::int64_t count);

// Everything that does not depend on the samples. Immutable after construction, so one plan serves any number of threads.
class LogMelPlan {
 public:
  // Slaney mel filters (area-normalised triangles, 0 to 8000 Hz). Throws std::invalid_argument when n_mels is outside 1..149: from
  // 150 on, a filter would cover no frequency bin.
  explicit LogMelPlan(int n_mels);

  int n_mels() const { return static_cast<int>(filters_.size()); }

  static std::int64_t frames(const Clip& clip) { return clip.padded / kHop; }

  // Writes [n_mels, columns] row-major: the frames(clip) features, then in every further column `*fill`, or, when fill is null, the
  // clip's own floor, which is what silence after the clip would give. Samples must be finite. Allocates nothing.
  // Throws std::invalid_argument when the clip's lengths or columns are out of range; nothing is written then.
  void compute(const Clip& clip, float* out, std::int64_t columns, const float* fill) const;

 private:
  struct Filter {
    int first_bin;
    int bins;
    int first_weight;  // into weights_
  };
  struct Scratch;

  void frame_log10(const Clip& clip, std::int64_t frame, Scratch& scratch, float* log10_mel) const;

  PowerSpectrum400 spectrum_;
  alignas(64) double window_[kWindow];
  std::vector<Filter> filters_;
  std::vector<double> weights_;
};

}  // namespace arkfast
