#include "real_dft.h"

#include <cmath>

namespace arkfast {
namespace {

constexpr double kPi = 3.14159265358979323846;

struct Complex {
  double re, im;
};

inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
inline Complex operator*(double s, Complex a) { return {s * a.re, s * a.im}; }
inline Complex times_minus_i(Complex a) { return {a.im, -a.re}; }
inline Complex multiply(Complex a, double re, double im) { return {a.re * re - a.im * im, a.re * im + a.im * re}; }

template <int Radix>
inline void butterfly(Complex* a);

template <>
inline void butterfly<2>(Complex* a) {
  const Complex sum = a[0] + a[1];
  a[1] = a[0] - a[1];
  a[0] = sum;
}

template <>
inline void butterfly<4>(Complex* a) {
  const Complex s02 = a[0] + a[2], d02 = a[0] - a[2];
  const Complex s13 = a[1] + a[3], d13 = times_minus_i(a[1] - a[3]);
  a[0] = s02 + s13;
  a[1] = d02 + d13;
  a[2] = s02 - s13;
  a[3] = d02 - d13;
}

template <>
inline void butterfly<5>(Complex* a) {
  // cos and sin of 2π/5 and 4π/5.
  constexpr double c1 = 0.30901699437494742410, c2 = -0.80901699437494742410;
  constexpr double s1 = 0.95105651629515357212, s2 = 0.58778525229247312917;
  const Complex s14 = a[1] + a[4], d14 = a[1] - a[4];
  const Complex s23 = a[2] + a[3], d23 = a[2] - a[3];
  const Complex e1 = a[0] + c1 * s14 + c2 * s23, e2 = a[0] + c2 * s14 + c1 * s23;
  const Complex o1 = times_minus_i(s1 * d14 + s2 * d23), o2 = times_minus_i(s2 * d14 - s1 * d23);
  a[0] = a[0] + s14 + s23;
  a[1] = e1 + o1;
  a[2] = e2 + o2;
  a[3] = e2 - o2;
  a[4] = e1 - o1;
}

// One decimation-in-frequency Stockham pass: Stride interleaved transforms of Length become Radix·Stride ones of Length/Radix.
template <int Radix, int Length, int Stride, class Table>
inline void stockham_pass(const Table& twiddle, const double* __restrict in_re, const double* __restrict in_im, double* __restrict out_re,
                          double* __restrict out_im) {
  constexpr int kPart = Length / Radix;
  for (int p = 0; p < kPart; ++p) {
    for (int q = 0; q < Stride; ++q) {
      Complex a[Radix];
      for (int k = 0; k < Radix; ++k) {
        const int at = q + Stride * (p + kPart * k);
        a[k] = {in_re[at], in_im[at]};
      }
      butterfly<Radix>(a);
      for (int k = 0; k < Radix; ++k) {
        const Complex y = k == 0 ? a[0] : multiply(a[k], twiddle.re[k - 1][p], twiddle.im[k - 1][p]);
        const int to = q + Stride * (Radix * p + k);
        out_re[to] = y.re;
        out_im[to] = y.im;
      }
    }
  }
}

// The last pass has nothing left to turn: Length == Radix, every twiddle is 1.
template <int Radix, int Stride>
inline void last_pass(const double* __restrict in_re, const double* __restrict in_im, double* __restrict out_re, double* __restrict out_im) {
  for (int q = 0; q < Stride; ++q) {
    Complex a[Radix];
    for (int k = 0; k < Radix; ++k) a[k] = {in_re[q + Stride * k], in_im[q + Stride * k]};
    butterfly<Radix>(a);
    for (int k = 0; k < Radix; ++k) {
      out_re[q + Stride * k] = a[k].re;
      out_im[q + Stride * k] = a[k].im;
    }
  }
}

}  // namespace

template <int Radix, int Length>
PowerSpectrum400::Twiddles<Radix, Length>::Twiddles() {
  for (int k = 1; k < Radix; ++k) {
    for (int p = 0; p < Length / Radix; ++p) {
      const double angle = -2.0 * kPi * ((k * p) % Length) / Length;
      re[k - 1][p] = std::cos(angle);
      im[k - 1][p] = std::sin(angle);
    }
  }
}

PowerSpectrum400::PowerSpectrum400() {
  for (int k = 0; k <= kPacked / 2; ++k) {
    untangle_re_[k] = std::cos(-2.0 * kPi * k / kSamples);
    untangle_im_[k] = std::sin(-2.0 * kPi * k / kSamples);
  }
}

void PowerSpectrum400::operator()(Scratch& scratch, double* power) const {
  auto& re = scratch.re;
  auto& im = scratch.im;
  stockham_pass<4, 200, 1>(first_, re[0], im[0], re[1], im[1]);
  stockham_pass<2, 50, 4>(second_, re[1], im[1], re[0], im[0]);
  stockham_pass<5, 25, 8>(third_, re[0], im[0], re[1], im[1]);
  last_pass<5, 40>(re[1], im[1], re[0], im[0]);

  const double* z_re = re[0];
  const double* z_im = im[0];
  const double sum = z_re[0] + z_im[0], difference = z_re[0] - z_im[0];
  power[0] = sum * sum;
  power[kPacked] = difference * difference;
  for (int k = 1; k <= kPacked / 2; ++k) {
    const int mirror = kPacked - k;
    // Twice E[k] and twice O[k]; the factor leaves with the 1/4 below.
    const Complex even = {z_re[k] + z_re[mirror], z_im[k] - z_im[mirror]};
    const Complex odd = times_minus_i({z_re[k] - z_re[mirror], z_im[k] + z_im[mirror]});
    const Complex turned = multiply(odd, untangle_re_[k], untangle_im_[k]);
    const Complex upper = even + turned;  // 2 X[k]
    const Complex lower = even - turned;  // 2 conj X[200-k]
    power[k] = 0.25 * (upper.re * upper.re + upper.im * upper.im);
    power[mirror] = 0.25 * (lower.re * lower.re + lower.im * lower.im);
  }
}

}  // namespace arkfast
