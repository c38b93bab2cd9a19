// The Python module _C: loading it registers the ops; what it binds itself is information about the
// build and the CPU, the record of calls that deepgen_ext/profiling reads, and a node of the graph.
#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <bit>
#include <string>

#include "call_record.h"
#include "power_iteration.h"

#ifdef DEEPGEN_WITH_CUDA
#include <cuda_runtime.h>
#endif

namespace py = pybind11;

namespace {

// Which of the clones of cpu/simd.h this machine runs.
std::string simd_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return "avx512f";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2+fma";
  return "sse2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "baseline of the compiler";
#endif
}

int cuda_runtime_version() {
#ifdef DEEPGEN_WITH_CUDA
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
#else
  return 0;
#endif
}

// A tensor that an op was called with: what is left of it in a record. `numbers` are the elements
// of a vector of integers on the CPU, which say what part of other tensors is used.
struct TensorFacts {
  std::string dtype, device;
  int64_t bytes = 0;
  std::vector<int64_t> shape, numbers;
};

using deepgen::recording::Record;

// The value whose words begin at `at`, which is moved behind them.
py::object value_of(const deepgen::recording::Words& words, size_t& at, const Record& record) {
  namespace recording = deepgen::recording;
  const auto next = [&] { return words[at++]; };
  switch (next()) {
    case recording::tensor: {
      TensorFacts facts;
      facts.dtype = c10::toString(static_cast<c10::ScalarType>(next()));
      facts.device = c10::DeviceTypeName(static_cast<c10::DeviceType>(next()), true);
      facts.bytes = next();
      const int64_t dimensions = next();
      for (int64_t d = 0; d < dimensions; ++d) facts.shape.push_back(next());
      return py::cast(facts);
    }
    case recording::indices: {
      const recording::Address address{words[at], words[at + 1], words[at + 2]};
      at += 3;
      return py::cast(TensorFacts{address[2] == 8 ? "Long" : "Int",
                                  "cpu",
                                  address[1] * address[2],
                                  {address[1]},
                                  record.vectors.at(address)});
    }
    case recording::list: {
      py::list elements;
      const int64_t count = next();
      for (int64_t i = 0; i < count; ++i) elements.append(value_of(words, at, record));
      return elements;
    }
    case recording::integer:
      return py::int_(next());
    case recording::real:
      return py::float_(std::bit_cast<double>(next()));
    case recording::boolean:
      return py::bool_(next() != 0);
    case recording::text: {
      std::string letters;
      const int64_t count = next();
      for (int64_t i = 0; i < count; ++i) letters.push_back(static_cast<char>(next()));
      return py::str(letters);
    }
    default:
      return py::none();
  }
}

// (op, arguments by name, names of those written, results, [(what, why), ...])
py::tuple signature_of(const deepgen::recording::Signature& signature, const Record& record) {
  py::dict arguments;
  py::list written, results, choices;
  size_t at = 0;
  for (const c10::Argument& argument : signature.schema->arguments()) {
    arguments[py::str(argument.name())] = value_of(signature.arguments, at, record);
    if (argument.alias_info() && argument.alias_info()->isWrite()) written.append(argument.name());
  }
  for (at = 0; at < signature.results.size();)
    results.append(value_of(signature.results, at, record));
  for (size_t i = 0; i < signature.choices.size(); i += 2)
    choices.append(py::make_tuple(signature.choices[i], signature.choices[i + 1]));
  const std::string& name = signature.schema->name();
  return py::make_tuple(name.substr(name.find("::") + 2), arguments, written, results, choices);
}

// ([signature, ...], [(signature, thread, start, total, self, device time), ...])
py::tuple stop_recording(int64_t token) {
  const Record record = [&] {
    const py::gil_scoped_release others_may_run;  // while a GPU is waited for
    return deepgen::recording::stop(token);
  }();
  py::list signatures, calls;
  for (const auto& signature : record.signatures)
    signatures.append(signature_of(signature, record));
  for (const auto& c : record.calls)
    calls.append(py::make_tuple(c.signature, c.thread, c.start, c.total, c.self, c.device_time));
  return py::make_tuple(signatures, calls);
}

const at::Tensor& tensor_of(const py::object& object) {
  if (!THPVariable_Check(object.ptr())) throw py::type_error("expected tensors");
  return THPVariable_Unpack(object.ptr());
}

py::object known_scaled_weight(const py::object& weight, const py::object& scaled,
                               const py::object& u, const py::object& v, const py::object& sigma,
                               double coefficient) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(
      deepgen::known_scaled_weight(tensor_of(weight), tensor_of(scaled), tensor_of(u), tensor_of(v),
                                   tensor_of(sigma), coefficient)));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("simd_level", &simd_level, "The instruction set of the CPU kernels on this machine.");
  m.def("cuda_runtime_version", &cuda_runtime_version,
        "As 1000 * major + 10 * minor; 0 in a build without CUDA.");

  py::class_<TensorFacts>(m, "TensorFacts")
      .def_readonly("dtype", &TensorFacts::dtype)
      .def_readonly("device", &TensorFacts::device)
      .def_readonly("bytes", &TensorFacts::bytes)
      .def_readonly("shape", &TensorFacts::shape)
      .def_readonly("numbers", &TensorFacts::numbers);
  m.def("start_recording", &deepgen::recording::start, "Of the calls of ops; returns a token.");
  m.def("stop_recording", &stop_recording, "What was called since start_recording().");
  m.def("is_recording", &deepgen::recording::is_on);
  m.def(
      "known_scaled_weight", &known_scaled_weight,
      "What spectral_normalize made of a weight under no_grad, with the graph it would have had.");
  m.def("dispatcher_is_hooked", &deepgen::recording::is_hooked,
        "Whether anything, torch's profiler included, watches the ops of this thread.");
}
