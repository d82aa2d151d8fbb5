// The kernel for any CPU: GCC's and Clang's vector types, 4 frames at a time, no intrinsics. The compiler may join a product and a sum
// here where the CPU can (Arm's NEON).
#include "kernel.h"

namespace arkfast {
namespace {

struct Isa {
  static constexpr int kLanes = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef double D __attribute__((vector_size(16)));
  typedef int I __attribute__((vector_size(16)));

  static inline F load(const float* from) {
    F x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  static inline void store(float* to, F x) { __builtin_memcpy(to, &x, sizeof x); }
  static inline D widen(const float* from) { return D{static_cast<double>(from[0]), static_cast<double>(from[1])}; }
  static inline void put_power(float* to, int bin, D x) {
    to[bin * kLanes] = static_cast<float>(x[0]);
    to[bin * kLanes + 1] = static_cast<float>(x[1]);
  }
  static inline void put_power(double* to, int bin, D x) { __builtin_memcpy(to + bin * (kLanes / 2), &x, sizeof x); }
  static inline F splat(float x) { return F{x, x, x, x}; }
  static inline D splat(double x) { return D{x, x}; }
  static inline F fma(F a, F b, F c) { return a * b + c; }
  static inline D fma(D a, D b, D c) { return a * b + c; }
  static inline D fnma(D a, D b, D c) { return c - a * b; }
  static inline F max(F a, F b) {
    const I greater = a > b;
    return reinterpret_cast<F>((reinterpret_cast<I>(a) & greater) | (reinterpret_cast<I>(b) & ~greater));
  }
  static inline F min(F a, F b) { return -max(-a, -b); }
  static inline F exponent(F x) { return __builtin_convertvector((reinterpret_cast<I>(x) >> 23) - 127, F); }
  static inline F mantissa(F x) { return reinterpret_cast<F>((reinterpret_cast<I>(x) & 0x007fffff) | 0x3f800000); }

  static inline void store_bfloat16(std::uint16_t* to, F x) {
    typedef std::uint32_t U __attribute__((vector_size(16)));
    const U bits = reinterpret_cast<U>(x);
    const U rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::uint16_t>(rounded[i]);
  }

  // to[r * stride + f] = rows[f][column + r] for r, f = 0..3.
  static inline void transpose(const float* const* rows, int column, float* to, int stride) {
    for (int r = 0; r < kLanes; ++r) store(to + r * stride, F{rows[0][column + r], rows[1][column + r], rows[2][column + r], rows[3][column + r]});
  }
};

#include "kernel_body.h"

}  // namespace

const Kernel kGenericKernel = make_kernel("generic");

}  // namespace arkfast
