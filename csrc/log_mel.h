// Whisper's log-mel features of clips. Framing at a clip's ends, the clamp and what fills up a batch are decided here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "instruction_sets.h"
#include "kernel.h"
#include "thread_pool.h"

namespace arkfast {

// A clip of `count` samples, to be framed as if zeros followed up to `padded` samples (padded >= count, padded >= kWindow).
struct Clip {
  const float* samples;
  std::int64_t count;
  std::int64_t padded;
};

struct BadSample {
  std::size_t clip;
  std::int64_t sample;
};

inline std::int64_t frame_count(std::int64_t padded) { return padded / kHop; }

// The lowest feature that clamping keeps, given the highest one: 8 decades, or two units, below it.
inline float clamp_floor(float highest) { return highest - 2.0f > kSilent ? highest - 2.0f : kSilent; }

// Memory for a kernel, 64-byte aligned, kept by the calling thread for its next call.
void* thread_scratch(std::size_t bytes);

// Tables, kernel and threads for one n_mels. Immutable after construction; may be used by several threads at once.
class LogMelPlan {
 public:
  // threads: how many work on the clips of a call; 0 and 1 are the caller's alone. instruction_set: see choose_kernel.
  // Throws std::invalid_argument when n_mels, threads or instruction_set is out of range.
  explicit LogMelPlan(int n_mels, int threads = 0, const std::string& instruction_set = "");

  int n_mels() const { return tables_.n_mels; }
  int threads() const { return threads_; }
  const Kernel& kernel() const { return kernel_; }
  const Tables& tables() const { return tables_; }

  // Writes [clips, n_mels, columns] row-major, as float32 or as the bits of bfloat16: the frame_count(padded) features of each clip, then
  // in every further column `*fill`, or, when fill is null, the clip's own floor, which is what silence after the clip would give.
  // Returns the first sample that is NaN or infinite, if any; what was written is then of no use.
  // Throws std::invalid_argument when a clip's lengths or columns are out of range; nothing is written then.
  std::optional<BadSample> compute(const std::vector<Clip>& clips, float* out, std::int64_t columns, const float* fill) const;
  std::optional<BadSample> compute(const std::vector<Clip>& clips, std::uint16_t* out, std::int64_t columns, const float* fill) const;

  // The same answer without computing anything.
  std::optional<BadSample> find_nonfinite(const std::vector<Clip>& clips) const;

  // Clamps `frames` unclamped columns of rows `stride` apart to [n_mels, frames] in rows `columns` apart.
  void clamp(const float* unclamped, std::int64_t stride, std::int64_t frames, float floor, float* out, std::int64_t columns) const;
  void clamp(const float* unclamped, std::int64_t stride, std::int64_t frames, float floor, std::uint16_t* out, std::int64_t columns) const;

 private:
  Summary unclamped(const Clip& clip, float* out, std::int64_t stride, std::vector<float>& lowest) const;
  template <class Value, class Work>
  std::optional<BadSample> for_each_clip(const std::vector<Clip>& clips, Value* out, std::int64_t columns, const Work& work) const;

  const Tables tables_;
  const Kernel& kernel_;
  const int threads_;
  mutable ThreadPool pool_;
};

}  // namespace arkfast
