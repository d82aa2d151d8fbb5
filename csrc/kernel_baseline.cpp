// The kernel for what every x86-64 CPU has, SSE2 without FMA: 4 frames at a time.
#if defined(__x86_64__)

#include <emmintrin.h>

#include "kernel.h"

namespace arkfast {
namespace {

struct Isa {
  static constexpr int kLanes = 4;
  using F = __m128;
  using D = __m128d;

  static inline F load(const float* from) { return _mm_loadu_ps(from); }
  static inline void store(float* to, F x) { _mm_storeu_ps(to, x); }
  static inline D widen(const float* from) {
    return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  static inline void put_power(float* to, int bin, D x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + bin * kLanes), _mm_castps_si128(_mm_cvtpd_ps(x)));
  }
  static inline void put_power(double* to, int bin, D x) { _mm_store_pd(to + bin * (kLanes / 2), x); }
  static inline F splat(float x) { return _mm_set1_ps(x); }
  static inline D splat(double x) { return _mm_set1_pd(x); }
  static inline F fma(F a, F b, F c) { return a * b + c; }
  static inline D fma(D a, D b, D c) { return a * b + c; }
  static inline D fnma(D a, D b, D c) { return c - a * b; }
  static inline F max(F a, F b) { return _mm_max_ps(a, b); }
  static inline F min(F a, F b) { return _mm_min_ps(a, b); }
  static inline F exponent(F x) {
    return _mm_cvtepi32_ps(_mm_sub_epi32(_mm_srli_epi32(_mm_castps_si128(x), 23), _mm_set1_epi32(127)));
  }
  static inline F mantissa(F x) { return _mm_or_ps(_mm_and_ps(x, _mm_castsi128_ps(_mm_set1_epi32(0x007fffff))), _mm_set1_ps(1.0f)); }

  static inline void store_bfloat16(std::uint16_t* to, F x) {
    const __m128i bits = _mm_castps_si128(x);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    const __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    // An arithmetic shift, so that packing with signed saturation keeps all 16 bits.
    const __m128i high = _mm_srai_epi32(rounded, 16);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(high, high));
  }

  // to[r * stride + f] = rows[f][column + r] for r, f = 0..3.
  static inline void transpose(const float* const* rows, int column, float* to, int stride) {
    F a = load(rows[0] + column), b = load(rows[1] + column), c = load(rows[2] + column), d = load(rows[3] + column);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    store(to, a);
    store(to + stride, b);
    store(to + 2 * stride, c);
    store(to + 3 * stride, d);
  }
};

#include "kernel_body.h"

}  // namespace

const Kernel kBaselineKernel = make_kernel("baseline");

}  // namespace arkfast

#endif
