// The kernel for AVX2 with FMA: 8 frames at a time. Compiled with its own flags, run only where the CPU has them.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernel.h"

namespace arkfast {
namespace {

struct Isa {
  static constexpr int kLanes = 8;
  using F = __m256;
  using D = __m256d;

  static inline F load(const float* from) { return _mm256_loadu_ps(from); }
  static inline void store(float* to, F x) { _mm256_storeu_ps(to, x); }
  static inline D widen(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
  static inline void put_power(float* to, int bin, D x) { _mm_store_ps(to + bin * kLanes, _mm256_cvtpd_ps(x)); }
  static inline void put_power(double* to, int bin, D x) { _mm256_store_pd(to + bin * (kLanes / 2), x); }
  static inline F splat(float x) { return _mm256_set1_ps(x); }
  static inline D splat(double x) { return _mm256_set1_pd(x); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline D fma(D a, D b, D c) { return _mm256_fmadd_pd(a, b, c); }
  static inline D fnma(D a, D b, D c) { return _mm256_fnmadd_pd(a, b, c); }
  static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
  static inline F exponent(F x) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(x), 23), _mm256_set1_epi32(127)));
  }
  static inline F mantissa(F x) {
    return _mm256_or_ps(_mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x007fffff))), _mm256_set1_ps(1.0f));
  }

  static inline void store_bfloat16(std::uint16_t* to, F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
  }

  // to[r * stride + f] = rows[f][column + r] for r, f = 0..7. First within each half of 128 bits, then the halves.
  static inline void transpose(const float* const* rows, int column, float* to, int stride) {
    F halves[8];  // [4 i + j]: column j of each half, for rows 4 i .. 4 i + 3
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const F a = load(rows[4 * i] + column), b = load(rows[4 * i + 1] + column);
      const F c = load(rows[4 * i + 2] + column), d = load(rows[4 * i + 3] + column);
      const F ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
      const F cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
      halves[4 * i] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
      halves[4 * i + 1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
      halves[4 * i + 2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
      halves[4 * i + 3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      store(to + j * stride, _mm256_permute2f128_ps(halves[j], halves[4 + j], 0x20));
      store(to + (4 + j) * stride, _mm256_permute2f128_ps(halves[j], halves[4 + j], 0x31));
    }
  }
};

#include "kernel_body.h"

}  // namespace

const Kernel kAvx2Kernel = make_kernel("avx2");

}  // namespace arkfast

#endif
