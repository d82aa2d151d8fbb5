// What the kernels of every instruction set offer and what they are given: plain data, and no clips, threads or Python.
//
// Kernel files are compiled with flags that other machines may not survive. An inline function shared with the rest of the extension
// could be emitted there and picked by the linker for everyone, so this header and kernel_body.h hold plain data, and the kernel files
// include nothing of the C++ library beyond <cstddef> and <cstdint>.
#pragma once

#include <cstddef>
#include <cstdint>

namespace arkfast {

constexpr int kSamplingRate = 16000;  // Hz
constexpr int kHop = 160;             // samples from frame to frame: 10 ms
constexpr int kWindow = 400;          // samples under a frame's window: 25 ms
constexpr int kBins = kWindow / 2 + 1;
constexpr int kMaxMels = 149;  // from 150 on, a filter would cover no frequency bin

// A feature is (log10 e + 4) / 4 of a mel energy e, here before it is clamped to lie no more than 8 decades below the clip's highest.
// The feature of the least energy told from silence, 1e-10; unclamped ones may lie a hair below it.
constexpr float kSilent = -1.5f;

// Window and mel filters for one n_mels; immutable.
struct Tables {
  int n_mels;
  // Periodic Hann, at [n2][n1] for the sample that the codelets read there.
  alignas(64) double window[25][16];
  // Corner frequencies cut the bins into n_mels + 1 segments. A bin of segment m lies on the rising edge of filter m and on the falling
  // edge of filter m - 1; segment m is bins segment[m] .. segment[m + 1] - 1. Bins 0 and 200 have no weight in any filter.
  short segment[kMaxMels + 2];
  float rising[kBins];
  float falling[kBins];
};

// A clip, or the part of it still in memory, as a row of `padded` samples: sample i is samples[i - first] for first <= i < count, zero up
// to padded, and mirrored at both ends of the row without repeating the end sample.
struct Signal {
  const float* samples;
  std::int64_t first;
  std::int64_t count;
  std::int64_t padded;  // >= count, >= kWindow
};

struct Summary {
  float highest;  // of the features written, at least kSilent
  bool finite;    // false when a sample under one of the frames' windows is NaN or infinite; the values are then meaningless
};

struct Kernel {
  const char* name;
  std::size_t scratch_bytes;  // 64-byte aligned
  int tile;                   // frames that are computed together

  // Writes the unclamped features of frames begin .. end-1 to out[mel * stride + frame - begin]; looks at samples up to 160 end + 119 for
  // the summary. A frame's values do not depend on which others are computed with it. Unless null, lowest[i] is set to no more than the
  // lowest feature of frames begin + i * tile .. begin + (i + 1) * tile - 1.
  Summary (*features)(const Tables&, const Signal&, std::int64_t begin, std::int64_t end, float* out, std::int64_t stride, float* lowest,
                      void* scratch);

  // to[i] = max(from[i], floor), in float32 and rounded to nearest even bfloat16. The first may work in place.
  void (*clamp)(const float* from, std::int64_t count, float floor, float* to);
  void (*clamp_bfloat16)(const float* from, std::int64_t count, float floor, std::uint16_t* to);

  // Position of the first NaN or infinity in samples[0..count), or -1.
  std::int64_t (*find_nonfinite)(const float* samples, std::int64_t count);
};

// Defined where the architecture has them.
extern const Kernel kBaselineKernel;
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kGenericKernel;

}  // namespace arkfast
