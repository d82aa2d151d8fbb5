// The log-mel kernel, written once for all instruction sets: lanes are consecutive frames of one clip. Included by each kernel_*.cpp, after
// it has defined, in the same unnamed namespace, a struct with the vector types and the few operations that differ:
//   kLanes; F, kLanes floats; D, kLanes / 2 doubles; load, store, widen, put_power, splat, fma, fnma, max, min, exponent and mantissa (of
//   positive normal x = 2^exponent · mantissa, 1 <= mantissa < 2), transpose, store_bfloat16.
//
// The row of samples, mirrored and cut from sample -200, is seen as rows of one hop of 160. A tile holds kLanes + 2 such rows transposed,
// tile[r][f] = sample r of row f, so that sample 160 q + r of kLanes frames is the unaligned vector at tile[r][f + q]: each sample is
// transposed once and not once for each of the 2.5 windows that see it. Window and DFT run in float64, in two halves of kLanes / 2
// frames; the power is rounded to float32, where mel sums and logarithms run. A float32 transform would err by up to 5e-5 in bins far
// below a frame's peak; from the power on, float32 costs 3e-7.

#ifndef ARKFAST_INLINE
#define ARKFAST_INLINE inline __attribute__((always_inline))
#endif

#include "codelets/codelets.h"

typedef std::uint32_t Bits __attribute__((vector_size(sizeof(Isa::F))));

constexpr int kHalfWindow = kWindow / 2;
constexpr int kShared = (kWindow - 1) / kHop;  // rows, beyond its first, that a frame reads: the columns that a tile hands to the next
constexpr int kStride = Isa::kLanes + 4;

struct Offsets {
  short at[25][16];
};

constexpr Offsets tile_offsets() {
  Offsets offsets{};
  for (int n2 = 0; n2 < 25; ++n2) {
    for (int n1 = 0; n1 < 16; ++n1) {
      const int n = kSampleAt[n2][n1];
      offsets.at[n2][n1] = static_cast<short>(n % kHop * kStride + n / kHop);
    }
  }
  return offsets;
}

constexpr Offsets kOffsets = tile_offsets();

struct Scratch {
  alignas(64) float tile[kHop][kStride];
  alignas(64) Isa::D spectrum[8 * kRow];
  alignas(64) float power[kBins][Isa::kLanes];
  alignas(64) double wide_power[kBins][Isa::kLanes / 2];
  alignas(64) float rows[Isa::kLanes][kHop];  // copies of rows that meet an end of the clip
  alignas(64) float lanes[Isa::kLanes];
};

alignas(64) constexpr float kSilence[kHop] = {};

// Above it the power of a frame may have overflowed float32: FLT_MAX is 10^38.53.
constexpr float kOverflow = 38.5f / 4 + 1;

// Row f of the signal: samples 160 f - 200 .. 160 f - 41; in place where all of them are in memory, else copied to `copy`.
ARKFAST_INLINE const float* row_at(const Signal& x, std::int64_t f, float* copy) {
  const std::int64_t start = f * kHop - kHalfWindow;
  if (start >= x.first && start + kHop <= x.count) return x.samples + (start - x.first);
  for (int r = 0; r < kHop; ++r) {
    std::int64_t i = start + r;
    if (i < 0) i = -i;
    if (i >= x.padded) i = 2 * (x.padded - 1) - i;
    copy[r] = i >= x.first && i < x.count ? x.samples[i - x.first] : 0.0f;
  }
  return copy;
}

ARKFAST_INLINE bool is_nonfinite(const float* sample) {
  constexpr std::uint32_t kExponent = 0x7f800000;  // all ones: infinity or NaN
  std::uint32_t bits;
  __builtin_memcpy(&bits, sample, sizeof bits);
  return (bits & kExponent) == kExponent;
}

// Sets the top bit of a lane of `seen` when a sample is NaN or infinite: one more in its exponent then overflows into the sign's place.
ARKFAST_INLINE Bits probe(const float* samples, Bits seen) {
  return seen | ((reinterpret_cast<Bits>(Isa::load(samples)) & 0x7fffffffu) + 0x00800000u);
}

ARKFAST_INLINE bool any_nonfinite(Bits seen) {
  std::uint32_t all = 0;
  for (int i = 0; i < Isa::kLanes; ++i) all |= seen[i];
  return all >> 31 != 0;
}

// Rows f .. f + kLanes + 1 to the tile, the first two from the tile before where there was one; rows past `last`, which no frame needs,
// as zeros. Probes all new samples.
ARKFAST_INLINE Bits fill_tile(const Signal& x, std::int64_t f, std::int64_t last, bool first, Scratch& s, Bits seen) {
  if (first) {
    for (int q = 0; q < kShared; ++q) {
      const float* row = row_at(x, f + q, s.rows[q]);
      for (int r = 0; r < kHop; ++r) s.tile[r][q] = row[r];
      for (int r = 0; r < kHop; r += Isa::kLanes) seen = probe(row + r, seen);
    }
  } else {
    for (int r = 0; r < kHop; ++r) __builtin_memcpy(s.tile[r], s.tile[r] + Isa::kLanes, kShared * sizeof(float));
  }
  const float* rows[Isa::kLanes];
  for (int i = 0; i < Isa::kLanes; ++i) {
    const std::int64_t row = f + kShared + i;
    rows[i] = row <= last ? row_at(x, row, s.rows[i]) : kSilence;
  }
  for (int r = 0; r < kHop; r += Isa::kLanes) {
    for (int i = 0; i < Isa::kLanes; ++i) seen = probe(rows[i] + r, seen);  // before the stores, so that the loads serve both
    Isa::transpose(rows, r, s.tile[r] + kShared, kStride);
  }
  return seen;
}

// |DFT|² of the frames of half h (0 or 1) to to[bin][0 .. kLanes / 2 - 1], rows of the type's own width.
template <class Power>
ARKFAST_INLINE void power_spectrum(const Tables& tables, int h, Scratch& s, Power* to) {
  const float* tile = s.tile[0] + h * (Isa::kLanes / 2);
  for (int n2 = 0; n2 < 25; ++n2) {
    Isa::D x[16];
#pragma GCC unroll 16
    for (int n1 = 0; n1 < 16; ++n1) x[n1] = Isa::widen(tile + kOffsets.at[n2][n1]);
    real_dft16<Isa>(x, tables.window[n2], s.spectrum + 2 * n2);
  }
  real_dft25<Isa>(s.spectrum, kBinAt[0], to);
  real_dft25<Isa>(s.spectrum + 1, kBinAt[8], to);
#pragma GCC unroll 1
  for (int k1 = 1; k1 < 8; ++k1) complex_dft25<Isa>(s.spectrum + k1 * kRow, kBinAt[k1], to);
}

// log10 of finite normal x > 0, within 1e-7 + |log10 x| · 2^-24; more than 38.5 for infinity. x = 2^e · (1 + f) with 1 + f in [1, 2).
ARKFAST_INLINE Isa::F log10_of(Isa::F x) {
  using F = Isa::F;
  constexpr int kDegree = sizeof(kLog10) / sizeof(kLog10[0]) - 1;
  const F exponent = Isa::exponent(x);
  const F f = Isa::mantissa(x) - Isa::splat(1.0f);
  F p = Isa::splat(kLog10[kDegree]);
#pragma GCC unroll 16
  for (int n = kDegree - 1; n >= 0; --n) p = Isa::fma(p, f, Isa::splat(kLog10[n]));
  // log10(2) in two parts: the first has 12 bits, so its product with an exponent is exact.
  return Isa::fma(exponent, Isa::splat(0.301025390625f), Isa::fma(exponent, Isa::splat(4.6050389811952e-6f), p));
}

// Frames whose power overflows float32 (samples beyond some 1e17), one by one from float64 power. Returns the highest feature.
__attribute__((noinline)) float wide_features(const Tables& tables, int lane, Scratch& s, float* out, std::int64_t stride) {
  constexpr int kHalf = Isa::kLanes / 2;
  power_spectrum(tables, lane / kHalf, s, s.wide_power[0]);
  float highest = kSilent;
  double rising = 0.0;
  for (int m = 0; m <= tables.n_mels; ++m) {
    double falling = rising;
    rising = 0.0;
    for (int k = tables.segment[m]; k < tables.segment[m + 1]; ++k) {
      const double power = s.wide_power[k][lane % kHalf];
      falling += power * static_cast<double>(tables.falling[k]);
      rising += power * static_cast<double>(tables.rising[k]);
    }
    if (m == 0) continue;
    const float value = falling > 1e-10 ? static_cast<float>(__builtin_log10(falling)) * 0.25f + 1.0f : kSilent;
    out[(m - 1) * stride] = value;
    if (value > highest) highest = value;
  }
  return highest;
}

struct Extremes {
  Isa::F highest, lowest;  // of each lane
};

// The features of the frames in s.power, `count` of them wanted. The lanes that are not wanted count for the extremes too.
template <bool kFull>
ARKFAST_INLINE Extremes mel_features(const Tables& tables, Scratch& s, int count, float* out, std::int64_t stride) {
  using F = Isa::F;
  // Below 1e-10 by enough that the error of log10_of cannot lift silence above kSilent.
  const F least = Isa::splat(0.99e-10f);
  F highest = Isa::splat(kSilent);
  F lowest = Isa::splat(kOverflow);
  F rising = Isa::splat(0.0f);
  for (int m = 0; m <= tables.n_mels; ++m) {
    F falling = rising;
    rising = Isa::splat(0.0f);
    for (int k = tables.segment[m]; k < tables.segment[m + 1]; ++k) {
      const F power = Isa::load(s.power[k]);
      falling = Isa::fma(power, Isa::splat(tables.falling[k]), falling);
      rising = Isa::fma(power, Isa::splat(tables.rising[k]), rising);
    }
    if (m == 0) continue;
    // (x + 4) / 4 = x / 4 + 1: a quarter is exact, so that all of these round once and alike.
    const F value = Isa::fma(log10_of(Isa::max(falling, least)), Isa::splat(0.25f), Isa::splat(1.0f));
    highest = Isa::max(value, highest);
    lowest = Isa::min(value, lowest);
    float* to = out + (m - 1) * stride;
    if (kFull) {
      Isa::store(to, value);
    } else {
      Isa::store(s.lanes, value);
      for (int i = 0; i < count; ++i) to[i] = s.lanes[i];
    }
  }
  return {highest, lowest};
}

ARKFAST_INLINE float lowest_lane(Isa::F lanes, Scratch& s) {
  Isa::store(s.lanes, lanes);
  float lowest = s.lanes[0];
  for (int i = 1; i < Isa::kLanes; ++i) lowest = s.lanes[i] < lowest ? s.lanes[i] : lowest;
  return lowest;
}

Summary features(const Tables& tables, const Signal& x, std::int64_t begin, std::int64_t end, float* out, std::int64_t stride,
                 float* lowest, void* scratch) {
  Scratch& s = *static_cast<Scratch*>(scratch);
  float highest = kSilent;
  Bits seen = {};
  const std::int64_t last = end + 1;  // frame f reads rows f, f + 1 and half of f + 2
  for (std::int64_t f = begin; f < end; f += Isa::kLanes) {
    seen = fill_tile(x, f, last, f == begin, s, seen);
    for (int h = 0; h < 2; ++h) power_spectrum(tables, h, s, s.power[0] + h * (Isa::kLanes / 2));

    const bool full = f + Isa::kLanes <= end;
    const int count = full ? Isa::kLanes : static_cast<int>(end - f);
    float* to = out + (f - begin);
    const Extremes extremes =
        full ? mel_features<true>(tables, s, count, to, stride) : mel_features<false>(tables, s, count, to, stride);
    if (lowest != nullptr) lowest[(f - begin) / Isa::kLanes] = lowest_lane(extremes.lowest, s);
    Isa::store(s.lanes, extremes.highest);
    for (int i = 0; i < count; ++i) {
      float value = s.lanes[i];
      if (__builtin_expect(value > kOverflow, 0)) {
        value = wide_features(tables, i, s, to + i, stride);
        if (lowest != nullptr && lowest[(f - begin) / Isa::kLanes] > kSilent) lowest[(f - begin) / Isa::kLanes] = kSilent;
      }
      if (value > highest) highest = value;
    }
  }
  return {highest, !any_nonfinite(seen)};
}

ARKFAST_INLINE float clamped(float x, float floor) { return x > floor ? x : floor; }

void clamp(const float* from, std::int64_t count, float floor, float* to) {
  const Isa::F floors = Isa::splat(floor);
  std::int64_t i = 0;
  // A vector that straddles two cache lines takes twice as long to store.
  for (; i < count && reinterpret_cast<std::uintptr_t>(to + i) % sizeof(Isa::F) != 0; ++i) to[i] = clamped(from[i], floor);
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) Isa::store(to + i, Isa::max(Isa::load(from + i), floors));
  for (; i < count; ++i) to[i] = clamped(from[i], floor);
}

void clamp_bfloat16(const float* from, std::int64_t count, float floor, std::uint16_t* to) {
  const Isa::F floors = Isa::splat(floor);
  std::int64_t i = 0;
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) Isa::store_bfloat16(to + i, Isa::max(Isa::load(from + i), floors));
  for (; i < count; ++i) {
    const float value = clamped(from[i], floor);
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    to[i] = static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

std::int64_t find_nonfinite(const float* samples, std::int64_t count) {
  constexpr int kChunk = 256 * Isa::kLanes;  // a look at the bits per chunk keeps the inner loop free of branches
  std::int64_t begin = 0;
  for (; begin + kChunk <= count; begin += kChunk) {
    Bits seen = {};
    for (int i = 0; i < kChunk; i += Isa::kLanes) seen = probe(samples + begin + i, seen);
    if (any_nonfinite(seen)) break;
  }
  for (; begin < count; ++begin) {
    if (is_nonfinite(samples + begin)) return begin;
  }
  return -1;
}

constexpr Kernel make_kernel(const char* name) {
  return Kernel{name, sizeof(Scratch), Isa::kLanes, features, clamp, clamp_bfloat16, find_nonfinite};
}
