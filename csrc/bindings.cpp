// arkfast._C: the only file that knows Python. Checks shapes, releases the GIL around all work, leaves the wording of user errors to Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "log_mel.h"

namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using LengthArray = py::array_t<std::int64_t, py::array::c_style>;

// The arrays stay referenced by the caller's list, so their memory outlives the GIL-free stretch.
std::vector<arkfast::Clip> clips_of(const py::list& waveforms) {
  std::vector<arkfast::Clip> clips;
  clips.reserve(waveforms.size());
  for (const py::handle item : waveforms) {
    if (!py::isinstance<FloatArray>(item)) throw py::type_error("waveforms must be contiguous float32 arrays");
    const auto array = py::reinterpret_borrow<FloatArray>(item);
    if (array.ndim() != 1) throw std::invalid_argument("waveforms must have one dimension");
    clips.push_back({array.data(), array.shape(0), array.shape(0)});
  }
  return clips;
}

std::optional<std::pair<std::size_t, std::int64_t>> find_nonfinite(const py::list& waveforms) {
  const auto clips = clips_of(waveforms);
  const py::gil_scoped_release release;
  for (std::size_t i = 0; i < clips.size(); ++i) {
    const std::int64_t sample = arkfast::find_nonfinite(clips[i].samples, clips[i].count);
    if (sample >= 0) return std::make_pair(i, sample);
  }
  return std::nullopt;
}

void compute(const arkfast::LogMelPlan& plan, const py::list& waveforms, const LengthArray& padded, FloatArray& out, std::optional<float> fill) {
  auto clips = clips_of(waveforms);
  const auto count = static_cast<py::ssize_t>(clips.size());
  if (padded.ndim() != 1 || padded.shape(0) != count) throw std::invalid_argument("padded must hold one length per waveform");
  if (out.ndim() != 3 || out.shape(0) != count || out.shape(1) != plan.n_mels()) {
    throw std::invalid_argument("out must have the shape [waveforms, n_mels, columns]");
  }
  for (std::size_t i = 0; i < clips.size(); ++i) clips[i].padded = padded.data()[i];
  float* to = out.mutable_data();  // throws when out is read-only
  const std::int64_t columns = out.shape(2);
  const py::gil_scoped_release release;
  for (const arkfast::Clip& clip : clips) {
    plan.compute(clip, to, columns, fill ? &*fill : nullptr);
    to += plan.n_mels() * columns;
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "arkfast's C++ core: log-mel features.";
  m.def("instruction_set", &arkfast::instruction_set, "Name of the instruction set that the kernels run on.");
  m.def("find_nonfinite", &find_nonfinite, py::arg("waveforms"),
        "(item, sample) of the first NaN or infinity in a list of contiguous float32 [n] arrays, or None.");
  py::class_<arkfast::LogMelPlan>(m, "LogMelPlan", "Window, twiddle factors and mel filters for one n_mels; immutable and thread-safe.")
      .def(py::init<int>(), py::arg("n_mels"))
      .def_property_readonly("n_mels", &arkfast::LogMelPlan::n_mels)
      .def("compute", &compute, py::arg("waveforms"), py::arg("padded"), py::arg("out").noconvert(), py::arg("fill") = py::none(),
           "Writes features of finite float32 [n] waveforms, framed as if zero-padded to padded[i] samples, into out float32 "
           "[B, n_mels, columns]; columns past a clip's frames hold fill, or the clip's floor when fill is None.");
}
