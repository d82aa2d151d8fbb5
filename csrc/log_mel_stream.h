// Log-mel features of a clip that arrives in pieces: which frames are settled, and what they are.
#pragma once

#include <cstdint>
#include <vector>

#include "log_mel.h"

namespace arkfast {

// Keeps the unclamped features of every settled frame, 4 n_mels bytes each, and the samples that later frames still need. Frames do not depend
// on each other and the clamp is applied when reading, so the whole equals LogMelPlan's result bit for bit. One thread at a time.
class LogMelStream {
 public:
  // The plan must outlive the stream.
  explicit LogMelStream(const LogMelPlan& plan) : plan_(plan) {}

  // Appends finite samples and computes the frames that they settle: frame t needs 160 t + 200 samples, frame 0 one more.
  void push(const float* samples, std::int64_t count);

  std::int64_t samples() const { return count_; }

  // Settled frames, or, when `final`, frames of the clip if it ended here (at least 2: shorter clips count as padded to 400 samples).
  std::int64_t frames(bool final) const;

  // Writes [n_mels, columns]; columns must be frames(final), else std::invalid_argument. When `final`, the last frames see the mirrored
  // end of the clip, and the values are those of LogMelPlan::compute for the samples so far.
  void write(float* out, std::int64_t columns, bool final) const;
  void write(std::uint16_t* out, std::int64_t columns, bool final) const;

 private:
  void reserve(std::int64_t frames) const;
  template <class Value>
  void write_values(Value* out, std::int64_t columns, bool final) const;

  const LogMelPlan& plan_;
  std::vector<float> samples_;  // samples first_ .. count_ - 1
  std::int64_t first_ = 0;
  std::int64_t count_ = 0;
  // [n_mels, capacity_], the first settled_ columns of each row in use; reading may put the unsettled frames behind them.
  mutable std::vector<float> unclamped_;
  mutable std::int64_t capacity_ = 0;
  std::int64_t settled_ = 0;
  float highest_ = kSilent;
};

}  // namespace arkfast
