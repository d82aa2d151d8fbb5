// arkfast._C: the only file that knows Python. Checks shapes, releases the GIL around all work, leaves the wording of user errors to Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "instruction_sets.h"
#include "log_mel.h"
#include "log_mel_stream.h"

namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using BitsArray = py::array_t<std::uint16_t, py::array::c_style>;
using LengthArray = py::array_t<std::int64_t, py::array::c_style>;

FloatArray waveform_of(const py::handle item) {
  if (!py::isinstance<FloatArray>(item) || !(py::reinterpret_borrow<py::array>(item).flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
    throw py::type_error("waveforms must be contiguous aligned float32 arrays");
  }
  auto array = py::reinterpret_borrow<FloatArray>(item);
  if (array.ndim() != 1) throw std::invalid_argument("waveforms must have one dimension");
  return array;
}

// The arrays stay referenced by the caller's list, so their memory outlives the GIL-free stretch.
std::vector<arkfast::Clip> clips_of(const py::list& waveforms) {
  std::vector<arkfast::Clip> clips;
  clips.reserve(waveforms.size());
  for (const py::handle item : waveforms) {
    const FloatArray array = waveform_of(item);
    clips.push_back({array.data(), array.shape(0), array.shape(0)});
  }
  return clips;
}

using Found = std::optional<std::pair<std::size_t, std::int64_t>>;

Found found(const std::optional<arkfast::BadSample>& bad) {
  if (!bad) return std::nullopt;
  return std::make_pair(bad->clip, bad->sample);
}

Found find_nonfinite(const arkfast::LogMelPlan& plan, const py::list& waveforms) {
  const auto clips = clips_of(waveforms);
  const py::gil_scoped_release release;
  return found(plan.find_nonfinite(clips));
}

template <class Value>
Found compute(const arkfast::LogMelPlan& plan, const py::list& waveforms, const LengthArray& padded,
              py::array_t<Value, py::array::c_style>& out, std::optional<float> fill) {
  auto clips = clips_of(waveforms);
  const auto count = static_cast<py::ssize_t>(clips.size());
  if (padded.ndim() != 1 || padded.shape(0) != count) throw std::invalid_argument("padded must hold one length per waveform");
  if (out.ndim() != 3 || out.shape(0) != count || out.shape(1) != plan.n_mels()) {
    throw std::invalid_argument("out must have the shape [waveforms, n_mels, columns]");
  }
  for (std::size_t i = 0; i < clips.size(); ++i) clips[i].padded = padded.data()[i];
  Value* to = out.mutable_data();  // throws when out is read-only
  const std::int64_t columns = out.shape(2);
  const py::gil_scoped_release release;
  return found(plan.compute(clips, to, columns, fill ? &*fill : nullptr));
}

void push(arkfast::LogMelStream& stream, const py::object& samples) {
  const FloatArray array = waveform_of(samples);
  const float* from = array.data();
  const std::int64_t count = array.shape(0);
  const py::gil_scoped_release release;
  stream.push(from, count);
}

template <class Value>
void write(const arkfast::LogMelStream& stream, py::array_t<Value, py::array::c_style>& out, bool final, int n_mels) {
  if (out.ndim() != 2 || out.shape(0) != n_mels) throw std::invalid_argument("out must have the shape [n_mels, frames]");
  Value* to = out.mutable_data();
  const std::int64_t columns = out.shape(1);
  const py::gil_scoped_release release;
  stream.write(to, columns, final);
}

// A stream and the Python plan it computes with.
struct PyStream {
  explicit PyStream(const arkfast::LogMelPlan& plan) : n_mels(plan.n_mels()), stream(plan) {}
  const int n_mels;
  arkfast::LogMelStream stream;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "arkfast's C++ core: log-mel features.";
  m.def("instruction_set", [] { return arkfast::choose_kernel("").name; },
        "The instruction set that new plans use: the environment variable ARKFAST_ISA, or else the fastest supported.");
  m.def("instruction_sets", &arkfast::instruction_sets, "Instruction sets that this machine supports, fastest first.");
  py::class_<PyStream>(m, "LogMelStream", "Features of a clip that arrives in pieces; made by LogMelPlan.stream.")
      .def("push", [](PyStream& self, const py::object& samples) { push(self.stream, samples); }, py::arg("samples"),
           "Appends finite contiguous float32 [n] samples.")
      .def_property_readonly("samples", [](const PyStream& self) { return self.stream.samples(); })
      .def("frames", [](const PyStream& self, bool final) { return self.stream.frames(final); }, py::arg("final"),
           "Settled frames, or, when final, frames of the clip if it ended here.")
      .def("write", [](const PyStream& self, FloatArray& out, bool final) { write(self.stream, out, final, self.n_mels); },
           py::arg("out").noconvert(), py::arg("final"), "Writes features into out [n_mels, frames(final)], float32 or bfloat16 bits.")
      .def("write", [](const PyStream& self, BitsArray& out, bool final) { write(self.stream, out, final, self.n_mels); },
           py::arg("out").noconvert(), py::arg("final"));
  py::class_<arkfast::LogMelPlan>(m, "LogMelPlan", "Window, mel filters, kernel and threads for one n_mels; immutable and thread-safe.")
      .def(py::init<int, int, const std::string&>(), py::arg("n_mels"), py::arg("threads") = 0, py::arg("instruction_set") = "")
      .def_property_readonly("n_mels", &arkfast::LogMelPlan::n_mels)
      .def_property_readonly("threads", &arkfast::LogMelPlan::threads)
      .def_property_readonly("instruction_set", [](const arkfast::LogMelPlan& self) { return self.kernel().name; })
      .def("find_nonfinite", &find_nonfinite, py::arg("waveforms"),
           "(item, sample) of the first NaN or infinity in a list of contiguous float32 [n] arrays, or None.")
      .def("compute", &compute<float>, py::arg("waveforms"), py::arg("padded"), py::arg("out").noconvert(), py::arg("fill") = py::none(),
           "Writes features of float32 [n] waveforms, framed as if zero-padded to padded[i] samples, into out float32 or, as bfloat16 "
           "bits, uint16 [B, n_mels, columns]; columns past a clip's frames hold fill, or the clip's floor when fill is None. Returns "
           "(item, sample) of the first NaN or infinity, with which out is of no use, or None.")
      .def("compute", &compute<std::uint16_t>, py::arg("waveforms"), py::arg("padded"), py::arg("out").noconvert(),
           py::arg("fill") = py::none())
      .def("stream", [](const arkfast::LogMelPlan& self) { return std::make_unique<PyStream>(self); }, py::keep_alive<0, 1>(),
           "A new, empty LogMelStream.");
}
