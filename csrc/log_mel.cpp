#include "log_mel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace arkfast {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kLog10E = 0.43429448190325182765;
constexpr int kHalfWindow = kWindow / 2;
constexpr int kBins = PowerSpectrum400::kBins;
constexpr double kPowerFloor = 1e-10;
constexpr float kLogFloor = -10.0f;  // log10(kPowerFloor)
constexpr float kRange = 8.0f;       // decades kept below the clip's maximum
constexpr int kTile = 16;            // frames gathered before they are written: one cache line of each output row

// Slaney's mel scale: linear below 1 kHz at 200/3 Hz per mel, logarithmic above with 27 steps per factor 6.4.
constexpr double kHzPerMel = 200.0 / 3.0;
constexpr double kKneeHz = 1000.0;
constexpr double kKneeMel = kKneeHz / kHzPerMel;
const double kLogStep = std::log(6.4) / 27.0;

double hz_to_mel(double hz) { return hz < kKneeHz ? hz / kHzPerMel : kKneeMel + std::log(hz / kKneeHz) / kLogStep; }
double mel_to_hz(double mel) { return mel < kKneeMel ? mel * kHzPerMel : kKneeHz * std::exp(kLogStep * (mel - kKneeMel)); }

inline float scaled(float log10_mel, float floor) { return (std::max(log10_mel, floor) + 4.0f) * 0.25f; }

}  // namespace

struct LogMelPlan::Scratch {
  alignas(64) float samples[kWindow];
  alignas(64) double power[kBins];
  PowerSpectrum400::Scratch spectrum;
};

const char* instruction_set() { return "baseline"; }

std::int64_t find_nonfinite(const float* samples, std::int64_t count) {
  constexpr std::uint32_t kExponent = 0x7f800000u;  // all ones: infinity or NaN
  constexpr std::int64_t kChunk = 4096;             // a branch per chunk keeps the inner loop free for the vector unit
  const auto bad = [samples](std::int64_t i) {
    std::uint32_t bits;
    std::memcpy(&bits, samples + i, sizeof bits);
    return (bits & kExponent) == kExponent;
  };
  for (std::int64_t begin = 0; begin < count; begin += kChunk) {
    const std::int64_t end = std::min(begin + kChunk, count);
    std::uint32_t found = 0;
    for (std::int64_t i = begin; i < end; ++i) found |= bad(i);
    if (found == 0) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      if (bad(i)) return i;
    }
  }
  return -1;
}

LogMelPlan::LogMelPlan(int n_mels) {
  if (n_mels < 1 || n_mels > kBins) throw std::invalid_argument("n_mels must be 1 to 201, got " + std::to_string(n_mels));
  for (int n = 0; n < kWindow; ++n) window_[n] = 0.5 - 0.5 * std::cos(2.0 * kPi * n / kWindow);  // periodic Hann

  const double bin_hz = static_cast<double>(kSamplingRate) / kWindow;
  const double top_mel = hz_to_mel(kSamplingRate / 2.0);
  const auto corner_hz = [&](int i) { return mel_to_hz(top_mel * i / (n_mels + 1)); };
  filters_.reserve(static_cast<std::size_t>(n_mels));
  for (int m = 0; m < n_mels; ++m) {
    const double low = corner_hz(m), peak = corner_hz(m + 1), high = corner_hz(m + 2);
    Filter filter{0, 0, static_cast<int>(weights_.size())};
    for (int bin = 0; bin < kBins; ++bin) {
      const double hz = bin * bin_hz;
      const double height = std::min((hz - low) / (peak - low), (high - hz) / (high - peak));
      if (height <= 0.0) continue;
      if (filter.bins++ == 0) filter.first_bin = bin;
      weights_.push_back(height * 2.0 / (high - low));
    }
    if (filter.bins == 0) {
      throw std::invalid_argument("n_mels = " + std::to_string(n_mels) + " is too large: mel filter " + std::to_string(m) +
                                  " would cover no frequency bin of a 400-sample window");
    }
    filters_.push_back(filter);
  }
}

void LogMelPlan::frame_log10(const Clip& clip, std::int64_t frame, Scratch& scratch, float* log10_mel) const {
  const std::int64_t start = frame * kHop - kHalfWindow;
  const std::int64_t end = start + kWindow;
  // The padded row is mirrored at both ends without repeating the end sample: index i reads |i| on the left, 2(padded-1) - i on the right.
  const std::int64_t mirror = 2 * (clip.padded - 1);
  if (std::min(start, mirror - (end - 1)) >= clip.count) {
    std::fill_n(log10_mel, n_mels(), kLogFloor);  // the window sees nothing but padding
    return;
  }
  const float* x = clip.samples + start;
  if (start < 0 || end > clip.count) {
    for (int n = 0; n < kWindow; ++n) {
      const std::int64_t i = start + n;
      const std::int64_t from = i < 0 ? -i : i >= clip.padded ? mirror - i : i;
      scratch.samples[n] = from < clip.count ? clip.samples[from] : 0.0f;
    }
    x = scratch.samples;
  }
  double* even = scratch.spectrum.re[0];
  double* odd = scratch.spectrum.im[0];
  for (int n = 0; n < kWindow / 2; ++n) {
    even[n] = window_[2 * n] * static_cast<double>(x[2 * n]);
    odd[n] = window_[2 * n + 1] * static_cast<double>(x[2 * n + 1]);
  }
  spectrum_(scratch.spectrum, scratch.power);
  for (const Filter& filter : filters_) {
    const double* power = scratch.power + filter.first_bin;
    const double* weight = weights_.data() + filter.first_weight;
    double energy = 0.0;
    for (int i = 0; i < filter.bins; ++i) energy += weight[i] * power[i];
    *log10_mel++ = static_cast<float>(std::log(std::max(energy, kPowerFloor)) * kLog10E);
  }
}

void LogMelPlan::compute(const Clip& clip, float* out, std::int64_t columns, const float* fill) const {
  const std::int64_t frames = LogMelPlan::frames(clip);
  if (clip.count < 1 || clip.padded < clip.count || clip.padded < kWindow || columns < frames) {
    throw std::invalid_argument("LogMelPlan: count " + std::to_string(clip.count) + ", padded " + std::to_string(clip.padded) +
                                " and columns " + std::to_string(columns) + " do not fit together");
  }
  const int rows = n_mels();
  Scratch scratch;
  float tile[kTile][kBins];  // the constructor keeps n_mels <= kBins
  float peak = kLogFloor;
  for (std::int64_t begin = 0; begin < frames; begin += kTile) {
    const int count = static_cast<int>(std::min<std::int64_t>(kTile, frames - begin));
    for (int t = 0; t < count; ++t) {
      frame_log10(clip, begin + t, scratch, tile[t]);
      for (int m = 0; m < rows; ++m) peak = std::max(peak, tile[t][m]);
    }
    for (int m = 0; m < rows; ++m) {
      float* row = out + m * columns + begin;
      for (int t = 0; t < count; ++t) row[t] = tile[t][m];
    }
  }
  const float floor = std::max(kLogFloor, peak - kRange);
  const float beyond = fill != nullptr ? *fill : scaled(floor, floor);
  for (int m = 0; m < rows; ++m) {
    float* row = out + m * columns;
    for (std::int64_t t = 0; t < frames; ++t) row[t] = scaled(row[t], floor);
    std::fill(row + frames, row + columns, beyond);
  }
}

}  // namespace arkfast
