#include "log_mel.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "tables.h"

namespace arkfast {
namespace {

constexpr int kMaxThreads = 1024;
constexpr float kUnknown = std::numeric_limits<float>::lowest();  // of a tile: there may be something to clamp

int checked_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    throw std::invalid_argument("threads must be 0 to " + std::to_string(kMaxThreads) + ", got " + std::to_string(threads));
  }
  return threads;
}

std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // rounding could turn NaN into infinity
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class Value>
void fill_beyond(Value value, int n_mels, std::int64_t frames, Value* out, std::int64_t columns) {
  if (frames == columns) return;
  for (int m = 0; m < n_mels; ++m) std::fill(out + m * columns + frames, out + (m + 1) * columns, value);
}

}  // namespace

void* thread_scratch(std::size_t bytes) {
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (size < bytes) {
    memory.reset(::operator new(bytes, std::align_val_t{64}));
    size = bytes;
  }
  return memory.get();
}

LogMelPlan::LogMelPlan(int n_mels, int threads, const std::string& instruction_set)
    : tables_(make_tables(n_mels)), kernel_(choose_kernel(instruction_set)), threads_(checked_threads(threads)), pool_(threads_) {}

// lowest: for each tile of frames, no more than the lowest feature in it.
Summary LogMelPlan::unclamped(const Clip& clip, float* out, std::int64_t stride, std::vector<float>& lowest) const {
  const Signal signal{clip.samples, 0, clip.count, clip.padded};
  const std::int64_t frames = frame_count(clip.padded);
  lowest.assign(static_cast<std::size_t>((frames + kernel_.tile - 1) / kernel_.tile), kUnknown);
  // Frames first .. last-1 see nothing but padding: their windows begin past the clip and end before its mirror image begins.
  constexpr std::int64_t kHalf = kWindow / 2;
  const std::int64_t first = std::min(frames, (clip.count + kHalf + kHop - 1) / kHop);
  // Window end 160 t + 199, mirrored at padded - 1, must not reach below count: 2 (padded - 1) - (160 t + 199) >= count.
  const std::int64_t room = 2 * (clip.padded - 1) - clip.count - (kHalf - 1);
  const std::int64_t last = std::clamp(room < 0 ? 0 : room / kHop + 1, first, frames);
  void* scratch = thread_scratch(kernel_.scratch_bytes);
  Summary summary = kernel_.features(tables_, signal, 0, first, out, stride, lowest.data(), scratch);
  if (first < frames && first % kernel_.tile != 0) lowest[static_cast<std::size_t>(first / kernel_.tile)] = kUnknown;
  for (int m = 0; m < n_mels(); ++m) std::fill(out + m * stride + first, out + m * stride + last, kSilent);
  if (last < frames) {
    const Summary end = kernel_.features(tables_, signal, last, frames, out + last, stride, nullptr, scratch);
    summary = {std::max(summary.highest, end.highest), summary.finite && end.finite};
  }
  // The last samples may lie under no window.
  const std::int64_t seen = std::min(clip.count, (first + 1) * kHop - kHalf + kHop);
  summary.finite = summary.finite && kernel_.find_nonfinite(clip.samples + seen, clip.count - seen) < 0;
  return summary;
}

template <class Value, class Work>
std::optional<BadSample> LogMelPlan::for_each_clip(const std::vector<Clip>& clips, Value* out, std::int64_t columns,
                                                   const Work& work) const {
  for (const Clip& clip : clips) {
    if (clip.count < 1 || clip.padded < clip.count || clip.padded < kWindow || columns < frame_count(clip.padded)) {
      throw std::invalid_argument("LogMelPlan: count " + std::to_string(clip.count) + ", padded " + std::to_string(clip.padded) +
                                  " and columns " + std::to_string(columns) + " do not fit together");
    }
  }
  std::atomic<bool> finite{true};
  pool_.run(clips.size(), [&](std::size_t i) {
    if (!work(clips[i], out + static_cast<std::int64_t>(i) * n_mels() * columns)) finite = false;
  });
  return finite ? std::nullopt : find_nonfinite(clips);
}

std::optional<BadSample> LogMelPlan::find_nonfinite(const std::vector<Clip>& clips) const {
  for (std::size_t i = 0; i < clips.size(); ++i) {
    const std::int64_t sample = kernel_.find_nonfinite(clips[i].samples, clips[i].count);
    if (sample >= 0) return BadSample{i, sample};
  }
  return std::nullopt;
}

std::optional<BadSample> LogMelPlan::compute(const std::vector<Clip>& clips, float* out, std::int64_t columns, const float* fill) const {
  return for_each_clip(clips, out, columns, [&](const Clip& clip, float* to) {
    const std::int64_t frames = frame_count(clip.padded);
    std::vector<float> lowest;
    const Summary summary = unclamped(clip, to, columns, lowest);
    const float floor = clamp_floor(summary.highest);
    // Most tiles of most recordings hold nothing to clamp, and reading them again would take longer than telling.
    for (std::size_t i = 0; i < lowest.size(); ++i) {
      const std::size_t begin = i;
      while (i < lowest.size() && lowest[i] < floor) ++i;
      const std::int64_t from = static_cast<std::int64_t>(begin) * kernel_.tile;
      const std::int64_t count = std::min(frames, static_cast<std::int64_t>(i) * kernel_.tile) - from;
      clamp(to + from, columns, count, floor, to + from, columns);
    }
    fill_beyond(fill != nullptr ? *fill : floor, n_mels(), frames, to, columns);
    return summary.finite;
  });
}

std::optional<BadSample> LogMelPlan::compute(const std::vector<Clip>& clips, std::uint16_t* out, std::int64_t columns,
                                             const float* fill) const {
  return for_each_clip(clips, out, columns, [&](const Clip& clip, std::uint16_t* to) {
    const std::int64_t frames = frame_count(clip.padded);
    const std::unique_ptr<float[]> values(new float[static_cast<std::size_t>(n_mels() * frames)]);  // not zeroed, unlike std::vector
    std::vector<float> lowest;
    const Summary summary = unclamped(clip, values.get(), frames, lowest);
    const float floor = clamp_floor(summary.highest);
    clamp(values.get(), frames, frames, floor, to, columns);
    fill_beyond(to_bfloat16(fill != nullptr ? *fill : floor), n_mels(), frames, to, columns);
    return summary.finite;
  });
}

void LogMelPlan::clamp(const float* unclamped, std::int64_t stride, std::int64_t frames, float floor, float* out,
                       std::int64_t columns) const {
  if (frames <= 0) return;
  for (int m = 0; m < n_mels(); ++m) kernel_.clamp(unclamped + m * stride, frames, floor, out + m * columns);
}

void LogMelPlan::clamp(const float* unclamped, std::int64_t stride, std::int64_t frames, float floor, std::uint16_t* out,
                       std::int64_t columns) const {
  for (int m = 0; m < n_mels(); ++m) kernel_.clamp_bfloat16(unclamped + m * stride, frames, floor, out + m * columns);
}

}  // namespace arkfast
