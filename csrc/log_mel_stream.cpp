#include "log_mel_stream.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace arkfast {
namespace {

constexpr std::int64_t kHalf = kWindow / 2;

std::int64_t padded_length(std::int64_t count) { return std::max<std::int64_t>(count, kWindow); }

}  // namespace

void LogMelStream::reserve(std::int64_t frames) const {
  if (frames <= capacity_) return;
  const std::int64_t capacity = std::max(frames, 2 * capacity_);
  std::vector<float> grown(static_cast<std::size_t>(plan_.n_mels() * capacity));
  for (int m = 0; m < plan_.n_mels(); ++m) {
    std::copy_n(unclamped_.data() + m * capacity_, settled_, grown.data() + m * capacity);
  }
  unclamped_.swap(grown);
  capacity_ = capacity;
}

void LogMelStream::push(const float* samples, std::int64_t count) {
  samples_.insert(samples_.end(), samples, samples + count);
  count_ += count;
  // Frame 0 mirrors sample 200 to its left end.
  const std::int64_t settled = count_ <= kHalf ? 0 : (count_ - kHalf) / kHop + 1;
  if (settled == settled_) return;
  reserve(settled);
  const Signal signal{samples_.data(), first_, count_, padded_length(count_)};
  void* scratch = thread_scratch(plan_.kernel().scratch_bytes);
  const Summary summary =
      plan_.kernel().features(plan_.tables(), signal, settled_, settled, unclamped_.data() + settled_, capacity_, nullptr, scratch);
  highest_ = std::max(highest_, summary.highest);
  settled_ = settled;
  const std::int64_t needed = std::max<std::int64_t>(0, settled_ * kHop - kHalf);
  samples_.erase(samples_.begin(), samples_.begin() + (needed - first_));
  first_ = needed;
}

std::int64_t LogMelStream::frames(bool final) const { return final ? frame_count(padded_length(count_)) : settled_; }

template <class Value>
void LogMelStream::write_values(Value* out, std::int64_t columns, bool final) const {
  const std::int64_t frames = LogMelStream::frames(final);
  if (columns != frames) {
    throw std::invalid_argument("LogMelStream: " + std::to_string(frames) + " frames do not fit " + std::to_string(columns) + " columns");
  }
  float highest = highest_;
  if (settled_ < frames) {
    // Into the columns past the settled ones, which the next push overwrites.
    reserve(frames);
    const Signal signal{samples_.data(), first_, count_, padded_length(count_)};
    void* scratch = thread_scratch(plan_.kernel().scratch_bytes);
    const Summary summary =
        plan_.kernel().features(plan_.tables(), signal, settled_, frames, unclamped_.data() + settled_, capacity_, nullptr, scratch);
    highest = std::max(highest, summary.highest);
  }
  plan_.clamp(unclamped_.data(), capacity_, frames, clamp_floor(highest), out, columns);
}

void LogMelStream::write(float* out, std::int64_t columns, bool final) const { write_values(out, columns, final); }
void LogMelStream::write(std::uint16_t* out, std::int64_t columns, bool final) const { write_values(out, columns, final); }

}  // namespace arkfast
