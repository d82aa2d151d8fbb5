#include "tables.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace arkfast {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz at 200/3 Hz per mel, logarithmic above with 27 steps per factor 6.4.
constexpr double kHzPerMel = 200.0 / 3.0;
constexpr double kKneeHz = 1000.0;
constexpr double kKneeMel = kKneeHz / kHzPerMel;

double log_step() { return std::log(6.4) / 27.0; }
double hz_to_mel(double hz) { return hz < kKneeHz ? hz / kHzPerMel : kKneeMel + std::log(hz / kKneeHz) / log_step(); }
double mel_to_hz(double mel) { return mel < kKneeMel ? mel * kHzPerMel : kKneeHz * std::exp(log_step() * (mel - kKneeMel)); }

}  // namespace

Tables make_tables(int n_mels) {
  if (n_mels < 1 || n_mels > kMaxMels) {
    throw std::invalid_argument("n_mels must be 1 to " + std::to_string(kMaxMels) + ", got " + std::to_string(n_mels) +
                                ": beyond, a mel filter would cover no frequency bin of a 400-sample window");
  }
  Tables tables{};
  tables.n_mels = n_mels;
  for (int n2 = 0; n2 < 25; ++n2) {
    for (int n1 = 0; n1 < 16; ++n1) {
      const int n = (25 * n1 + 16 * n2) % kWindow;
      tables.window[n2][n1] = 0.5 - 0.5 * std::cos(2.0 * kPi * n / kWindow);
    }
  }

  const double bin_hz = static_cast<double>(kSamplingRate) / kWindow;
  const double top_mel = hz_to_mel(kSamplingRate / 2.0);
  // Filter m rises from corner m to m + 1 and falls to m + 2; its area is 1.
  const auto corner = [&](int i) { return mel_to_hz(top_mel * i / (n_mels + 1)); };
  int bin = 1;
  for (int m = 0; m <= n_mels; ++m) {
    const double low = corner(m), high = corner(m + 1);
    tables.segment[m] = static_cast<short>(bin);
    // The last segment takes all bins left, so that rounding of the top corner cannot lose one.
    for (; bin < kBins - 1 && (bin * bin_hz < high || m == n_mels); ++bin) {
      const double along = (bin * bin_hz - low) / (high - low);
      if (m < n_mels) tables.rising[bin] = static_cast<float>(along * 2.0 / (corner(m + 2) - low));
      if (m > 0) tables.falling[bin] = static_cast<float>((1.0 - along) * 2.0 / (high - corner(m - 1)));
    }
  }
  tables.segment[n_mels + 1] = static_cast<short>(bin);
  return tables;
}

}  // namespace arkfast
