// The power spectrum of 400 real samples in float64. Knows the DFT and nothing of audio, windows or mel filters.
#pragma once

#include <array>

namespace arkfast {

// |DFT|² of 400 real samples, bins 0..200.
//
// The samples are packed into 200 complex numbers z[n] = x[2n] + i x[2n+1]; their DFT runs as Stockham passes of radix 4, 2, 5, 5
// (200 = 4·2·5·5, self-sorting, no bit reversal), and the real spectrum is untangled from it:
//   E[k] = (Z[k] + conj Z[200-k]) / 2,  O[k] = (Z[k] - conj Z[200-k]) / 2i,  X[k] = E[k] + e^(-2πik/400) O[k].
//
// Immutable after construction, so one object serves any number of threads; all scratch belongs to the caller.
class PowerSpectrum400 {
 public:
  static constexpr int kSamples = 400;
  static constexpr int kPacked = kSamples / 2;    // complex numbers in the packed transform
  static constexpr int kBins = kSamples / 2 + 1;  // 0 .. Nyquist

  struct Scratch {
    // Packed input on entry (even samples in re[0], odd samples in im[0]); both pairs are overwritten.
    alignas(64) double re[2][kPacked];
    alignas(64) double im[2][kPacked];
  };

  PowerSpectrum400();

  // Transforms what lies in scratch.re[0] and scratch.im[0]; writes kBins values to power.
  void operator()(Scratch& scratch, double* power) const;

 private:
  template <int Radix, int Length>
  struct Twiddles {
    // e^(-2πi·k·p/Length) at [k-1][p] for k = 1..Radix-1.
    alignas(64) double re[Radix - 1][Length / Radix];
    alignas(64) double im[Radix - 1][Length / Radix];
    Twiddles();
  };

  Twiddles<4, 200> first_;
  Twiddles<2, 50> second_;
  Twiddles<5, 25> third_;
  // e^(-2πik/400), k = 0..100, for the untangling.
  alignas(64) std::array<double, kPacked / 2 + 1> untangle_re_;
  alignas(64) std::array<double, kPacked / 2 + 1> untangle_im_;
};

}  // namespace arkfast
