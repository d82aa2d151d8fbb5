// The kernel for AVX-512 (F, BW, DQ, VL) with FMA: 16 frames at a time. Compiled with its own flags, run only where the CPU has them.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernel.h"

namespace arkfast {
namespace {

struct Isa {
  static constexpr int kLanes = 16;
  using F = __m512;
  using D = __m512d;

  static inline F load(const float* from) { return _mm512_loadu_ps(from); }
  static inline void store(float* to, F x) { _mm512_storeu_ps(to, x); }
  static inline D widen(const float* from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
  static inline void put_power(float* to, int bin, D x) { _mm256_store_ps(to + bin * kLanes, _mm512_cvtpd_ps(x)); }
  static inline void put_power(double* to, int bin, D x) { _mm512_store_pd(to + bin * (kLanes / 2), x); }
  static inline F splat(float x) { return _mm512_set1_ps(x); }
  static inline D splat(double x) { return _mm512_set1_pd(x); }
  static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline D fma(D a, D b, D c) { return _mm512_fmadd_pd(a, b, c); }
  static inline D fnma(D a, D b, D c) { return _mm512_fnmadd_pd(a, b, c); }
  static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
  static inline F exponent(F x) { return _mm512_getexp_ps(x); }
  static inline F mantissa(F x) { return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }

  static inline void store_bfloat16(std::uint16_t* to, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }

  // to[r * stride + f] = rows[f][column + r] for r, f = 0..15. First within each quarter of 128 bits, then the quarters.
  static inline void transpose(const float* const* rows, int column, float* to, int stride) {
    F quarters[16];  // [4 i + j]: column j of each quarter, for rows 4 i .. 4 i + 3
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F a = load(rows[4 * i] + column), b = load(rows[4 * i + 1] + column);
      const F c = load(rows[4 * i + 2] + column), d = load(rows[4 * i + 3] + column);
      const D ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
      const D cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
      quarters[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
      quarters[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
      quarters[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
      quarters[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const F a = quarters[j], b = quarters[4 + j], c = quarters[8 + j], d = quarters[12 + j];
      const F ab_even = _mm512_shuffle_f32x4(a, b, 0x88), ab_odd = _mm512_shuffle_f32x4(a, b, 0xdd);
      const F cd_even = _mm512_shuffle_f32x4(c, d, 0x88), cd_odd = _mm512_shuffle_f32x4(c, d, 0xdd);
      store(to + j * stride, _mm512_shuffle_f32x4(ab_even, cd_even, 0x88));
      store(to + (4 + j) * stride, _mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88));
      store(to + (8 + j) * stride, _mm512_shuffle_f32x4(ab_even, cd_even, 0xdd));
      store(to + (12 + j) * stride, _mm512_shuffle_f32x4(ab_odd, cd_odd, 0xdd));
    }
  }
};

#include "kernel_body.h"

}  // namespace

const Kernel kAvx512Kernel = make_kernel("avx512");

}  // namespace arkfast

#endif
