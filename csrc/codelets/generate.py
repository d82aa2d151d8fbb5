"""Writes ``codelets.h``: the power spectrum of 400 real samples as straight-line code for one vector of independent transforms, and the
coefficients of a polynomial for log10.

Only the algebra of the transform and of the logarithm stands here; instruction sets are the kernels' matter. After a change, run
``python csrc/codelets/generate.py``; a test compares the committed header with what this file gives.

The transform splits by prime factors (Good 1958, Thomas 1963), 400 = 16 · 25, so that no twiddle factors stand between the two parts:
with n = (25·n1 + 16·n2) mod 400 and k = k1 (mod 16), k = k2 (mod 25),

    X[k] = Σ_n2 e^(−2πi·n2·k2/25) Σ_n1 e^(−2πi·n1·k1/16) x[n].

(16·n2·k2/400 = n2·k2/25 and 25·n1·k1/400 = n1·k1/16; the cross terms are whole turns.) The samples are real, so k1 = 0..8 suffice, rows
0 and 8 stay real, and |X[k]| = |X[400 − k]|. Only |X|² is wanted, so a row may as well hold the conjugates of its values, which saves
negations: conjugating a row turns its bin k2 into bin −k2.
"""

from __future__ import annotations

import math
from pathlib import Path

HEADER = Path(__file__).with_name("codelets.h")

# An error of 1e-7 in log10 becomes 2.5e-8 in the feature, below half a float32 step of most.
LOG10_DEGREE = 7

# Rows k1 of the 16-point transform that hold conjugates, see above.
CONJUGATE_ROWS = {1, 4, 5, 6}

Complex = tuple[str, str]


class Emitter:
    """Collects the lines of a function body; every method that computes declares a constant and returns its name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names = 0

    def let(self, expression: str) -> str:
        name = f"t{self._names}"
        self._names += 1
        self.lines.append(f"const V {name} = {expression};")
        return name

    def constant(self, name: str, value: float) -> str:
        self.lines.append(f"const V {name} = Isa::splat({value!r});")
        return name

    def add(self, a: str, b: str) -> str:
        return self.let(f"{a} + {b}")

    def subtract(self, a: str, b: str) -> str:
        return self.let(f"{a} - {b}")

    def multiply(self, a: str, b: str) -> str:
        return self.let(f"{a} * {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        """a·b + c"""
        return self.let(f"Isa::fma({a}, {b}, {c})")

    def fnma(self, a: str, b: str, c: str) -> str:
        """c − a·b"""
        return self.let(f"Isa::fnma({a}, {b}, {c})")

    def store(self, target: str, value: str) -> None:
        self.lines.append(f"{target} = {value};")


def real_dft8(e: Emitter, sums: list[str], differences: list[str], half: str) -> dict[str, str]:
    """Bins 0..4 of a real 8-point transform of x, given x[j] + x[j+4] and x[j] − x[j+4] for j = 0..3.

    Keys "0r", "1r", "n1", "2r", "2i", "3r", "3i", "4r": real and imaginary parts, "n1" being minus the imaginary part of bin 1.
    """
    even, odd = e.add(sums[0], sums[2]), e.add(sums[1], sums[3])
    u, v = e.subtract(differences[1], differences[3]), e.add(differences[1], differences[3])
    return {
        "0r": e.add(even, odd),
        "4r": e.subtract(even, odd),
        "2r": e.subtract(sums[0], sums[2]),
        "2i": e.subtract(sums[3], sums[1]),
        "1r": e.fma(half, u, differences[0]),
        "3r": e.fnma(half, u, differences[0]),
        "n1": e.fma(half, v, differences[2]),
        "3i": e.fnma(half, v, differences[2]),
    }


def real_dft16(e: Emitter) -> None:
    """Windowed 16-point transform: rows k1 of `y`, one complex number each, row stride kRow; rows 0 and 8 share one.

    Two 8-point transforms of the even and odd samples, then X[k] = E[k] + w^k O[k] and X[8 − k] = conj(E[k] − w^k O[k]) with
    w^k = c − i·s. The larger of c and s is taken out of the product: c·a + s·b = c·(a + (s/c)·b), one multiplication less.
    """
    half = e.constant("half", math.sqrt(0.5))  # cos(π/4)
    cosine = e.constant("cosine", math.cos(math.pi / 8))
    tangent = e.constant("tangent", math.tan(math.pi / 8))
    parts = []
    for parity in (0, 1):
        sums, differences = [], []
        for j in range(4):
            low, high = 2 * j + parity, 2 * j + parity + 8
            product = e.multiply(f"x[{low}]", f"Isa::splat(w[{low}])")
            sums.append(e.fma(f"x[{high}]", f"Isa::splat(w[{high}])", product))
            differences.append(e.fnma(f"x[{high}]", f"Isa::splat(w[{high}])", product))
        parts.append(real_dft8(e, sums, differences, half))
    even, odd = parts

    def put(row: int, re: str, im: str) -> None:
        e.store(f"y[{row} * kRow]", re)
        e.store(f"y[{row} * kRow + 1]", im)

    put(0, e.add(even["0r"], odd["0r"]), e.subtract(even["0r"], odd["0r"]))  # bins 0 and 8, both real
    # k = 1: w·O = cosine·(a − i·b) with O = o1r − i·on1
    a, b = e.fnma(tangent, odd["n1"], odd["1r"]), e.fma(tangent, odd["1r"], odd["n1"])
    put(1, e.fma(cosine, a, even["1r"]), e.fma(cosine, b, even["n1"]))
    put(7, e.fnma(cosine, a, even["1r"]), e.fnma(cosine, b, even["n1"]))
    # k = 2: w²·O = half·(a + i·b)
    a, b = e.add(odd["2r"], odd["2i"]), e.subtract(odd["2i"], odd["2r"])
    put(2, e.fma(half, a, even["2r"]), e.fma(half, b, even["2i"]))
    put(6, e.fnma(half, a, even["2r"]), e.fnma(half, b, even["2i"]))
    # k = 3: w³·O = cosine·(a − i·b)
    a, b = e.fma(tangent, odd["3r"], odd["3i"]), e.fnma(tangent, odd["3i"], odd["3r"])
    put(3, e.fma(cosine, a, even["3r"]), e.fnma(cosine, b, even["3i"]))
    put(5, e.fnma(cosine, a, even["3r"]), e.fma(cosine, b, even["3i"]))
    put(4, even["4r"], odd["4r"])


class FivePoint:
    """5-point transforms from sums and differences of mirrored inputs, sin(4π/5) taken as a multiple of sin(2π/5).

    real: whether the inputs will be real.
    """

    def __init__(self, e: Emitter, *, real: bool = False) -> None:
        self._e = e
        self.quarter = e.constant("quarter", 0.25)
        self.root = e.constant("root", math.sqrt(5) / 4)  # (cos(2π/5) − cos(4π/5)) / 2
        self.sine = e.constant("sine", math.sin(2 * math.pi / 5))
        self.ratio = e.constant("ratio", math.sin(4 * math.pi / 5) / math.sin(2 * math.pi / 5))
        self.minus_sine = e.constant("minus_sine", -math.sin(2 * math.pi / 5)) if real else ""

    def _halves(self, x: list[str]) -> tuple[str, str, str, str, str]:
        """Bin 0, the cosine parts of bins 1 and 2, and the sine parts of bins 1 and minus 2 before their factor."""
        e = self._e
        sum14, difference14 = e.add(x[1], x[4]), e.subtract(x[1], x[4])
        sum23, difference23 = e.add(x[2], x[3]), e.subtract(x[2], x[3])
        total, contrast = e.add(sum14, sum23), e.subtract(sum14, sum23)
        mean = e.fnma(self.quarter, total, x[0])
        cosine1, cosine2 = e.fma(self.root, contrast, mean), e.fnma(self.root, contrast, mean)
        sine1 = e.fma(self.ratio, difference23, difference14)
        minus_sine2 = e.fnma(self.ratio, difference14, difference23)
        return e.add(x[0], total), cosine1, cosine2, sine1, minus_sine2

    def complex(self, x: list[Complex]) -> list[Complex]:
        e = self._e
        zero_r, cos1_r, cos2_r, sin1_r, nsin2_r = self._halves([z[0] for z in x])
        zero_i, cos1_i, cos2_i, sin1_i, nsin2_i = self._halves([z[1] for z in x])
        return [
            (zero_r, zero_i),
            (e.fma(self.sine, sin1_i, cos1_r), e.fnma(self.sine, sin1_r, cos1_i)),
            (e.fnma(self.sine, nsin2_i, cos2_r), e.fma(self.sine, nsin2_r, cos2_i)),
            (e.fma(self.sine, nsin2_i, cos2_r), e.fnma(self.sine, nsin2_r, cos2_i)),
            (e.fnma(self.sine, sin1_i, cos1_r), e.fma(self.sine, sin1_r, cos1_i)),
        ]

    def real(self, x: list[str]) -> list[Complex]:
        """Bins 0, 1, 2; bin 0 has no imaginary part."""
        e = self._e
        zero, cos1, cos2, sin1, nsin2 = self._halves(x)
        return [(zero, ""), (cos1, e.multiply(self.minus_sine, sin1)), (cos2, e.multiply(self.sine, nsin2))]


def turned(e: Emitter, z: list[Complex], c: int) -> list[Complex]:
    """z[b] · e^(−2πi·b·c/25) for b = 0..4"""
    result = [z[0]]
    for b in range(1, 5):
        if c == 0:
            result.append(z[b])
            continue
        angle = 2 * math.pi * b * c / 25
        cosine, sine = f"Isa::splat({math.cos(angle)!r})", f"Isa::splat({math.sin(angle)!r})"
        re, im = z[b]
        result.append((e.fma(cosine, re, e.multiply(sine, im)), e.fnma(sine, re, e.multiply(cosine, im))))
    return result


def put_power(e: Emitter, k2: int, z: Complex) -> None:
    re, im = z
    square = e.fma(re, re, e.multiply(im, im)) if im else e.multiply(re, re)
    e.lines.append(f"Isa::put_power(to, bins[{k2}], {square});")


def complex_dft25(e: Emitter) -> None:
    """|DFT|² of 25 complex numbers at y[0], y[1], ...: 25 = 5 · 5, n2 = 5a + b, k2 = c + 5d, twiddles e^(−2πi·b·c/25)."""
    five = FivePoint(e)
    columns = [five.complex([(f"y[{2 * (5 * a + b)}]", f"y[{2 * (5 * a + b) + 1}]") for a in range(5)]) for b in range(5)]
    for c in range(5):
        for d, z in enumerate(five.complex(turned(e, [columns[b][c] for b in range(5)], c))):
            put_power(e, c + 5 * d, z)


def real_dft25(e: Emitter) -> None:
    """|DFT|², bins with k2 = 0, 5, 10 and 1, 6, ... 22, of 25 real numbers at y[0], y[2], ...; the rest mirror these."""
    five = FivePoint(e, real=True)
    columns = [five.real([f"y[{2 * (5 * a + b)}]" for a in range(5)]) for b in range(5)]
    for d, z in enumerate(five.real([columns[b][0][0] for b in range(5)])):
        put_power(e, 5 * d, z)
    for c in (1, 2):
        for d, z in enumerate(five.complex(turned(e, [columns[b][c] for b in range(5)], c))):
            put_power(e, c + 5 * d, z)


def tables() -> list[str]:
    samples = [[(25 * n1 + 16 * n2) % 400 for n1 in range(16)] for n2 in range(25)]
    bins = []
    for k1 in range(9):
        row = []
        for k2 in range(25):
            true_k2 = -k2 % 25 if k1 in CONJUGATE_ROWS else k2
            k = next(k for k in range(k1, 400, 16) if k % 25 == true_k2)
            row.append(min(k, 400 - k))
        bins.append(row)

    def rows(table: list[list[int]]) -> str:
        return ",\n".join("    {" + ", ".join(map(str, row)) + "}" for row in table)

    return [
        "// The sample that stands at [n2][n1].",
        f"constexpr short kSampleAt[25][16] = {{\n{rows(samples)}}};",
        "",
        "// The bin, 0..200, that element k2 of row k1 gives.",
        f"constexpr short kBinAt[9][25] = {{\n{rows(bins)}}};",
    ]


def log10_coefficients(degree: int) -> list[float]:
    """c with Σ c[n] fⁿ ≈ log10(1 + f) for 1 + f in [1, 2], from the truncated Chebyshev series of the logarithm.

    With 1 + f = middle + half·u, log(1 + f) = log((1 + √2)² / 4) − Σ_n (2/n) (−t)ⁿ T_n(u), where t = (√2 − 1) / (√2 + 1)
    (Mason and Handscomb 2003, §5.3); what is cut off is below (2/(degree + 1)) tᵈᵉᵍʳᵉᵉ⁺¹ / (1 − t).
    """
    t = (math.sqrt(2) - 1) / (math.sqrt(2) + 1)
    chebyshev = [math.log((1 + math.sqrt(2)) ** 2 / 4)] + [-((-t) ** n) * 2 / n for n in range(1, degree + 1)]
    # The polynomials in f: T_0 = 1, T_1 = u = (1 − middle)/half + f/half, T_n+1 = 2 u T_n − T_n−1.
    middle, half = 1.5, 0.5
    shift, slope = (1 - middle) / half, 1 / half

    def times_u(p: list[float]) -> list[float]:
        return [shift * low + slope * high for low, high in zip([*p, 0.0], [0.0, *p], strict=True)]

    before, now = [1.0], times_u([1.0])
    total = [chebyshev[0]] + [0.0] * degree
    for n in range(1, degree + 1):
        for i, c in enumerate(now):
            total[i] += chebyshev[n] * c
        before, now = now, [2 * x - y for x, y in zip(times_u(now), [*before, 0.0, 0.0], strict=True)]
    return [c * math.log10(math.e) for c in total]


def function(name: str, parameters: str, arguments: str, comment: str, e: Emitter) -> list[str]:
    return [
        f"// {comment}",
        f"template <{parameters}>",
        f"ARKFAST_INLINE void {name}({arguments}) {{",
        "  using V = typename Isa::D;",
        *(f"  {line}" for line in e.lines),
        "}",
    ]


def generate() -> str:
    """The text of ``codelets.h``."""
    dft16, complex25, real25 = Emitter(), Emitter(), Emitter()
    real_dft16(dft16)
    complex_dft25(complex25)
    real_dft25(real25)
    row = ("class Isa, class Power", "const typename Isa::D* y, const short* bins, Power* to")
    return "\n".join(
        [
            "// Generated by generate.py; edit that. Included into an unnamed namespace by kernel_body.h, once per instruction set.",
            "",
            *tables(),
            "",
            "constexpr int kRow = 50;  // from row k1 to row k1 + 1: 25 complex numbers",
            "",
            *function(
                "real_dft16",
                "class Isa",
                "const typename Isa::D* x, const double* w, typename Isa::D* y",
                "16 samples times their window to y[k1 * kRow]; rows 0 and 8 share one.",
                dft16,
            ),
            "",
            *function("complex_dft25", *row, "Power of a row of complex numbers, at to[bins[k2] ...].", complex25),
            "",
            *function("real_dft25", *row, "Power of a row of real numbers, 2 apart in y.", real25),
            "",
            "// log10(1 + f) = Σ kLog10[n] fⁿ within 1e-7 for 1 + f in [1, 2].",
            f"constexpr float kLog10[] = {{{', '.join(f'{c:.9e}f' for c in log10_coefficients(LOG10_DEGREE))}}};",
            "",
        ]
    )


if __name__ == "__main__":
    HEADER.write_text(generate(), encoding="utf-8")
