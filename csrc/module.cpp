// The Python module simclr_fast._C: loading it registers the kernels; build_info() says how it was built.
#include <pybind11/pybind11.h>

#include <string>

#include "isa.h"

namespace py = pybind11;

namespace {

#define SIMCLR_STRING_(x) #x
#define SIMCLR_STRING(x) SIMCLR_STRING_(x)

py::dict build_info() {
  py::dict info;
#ifdef __clang__
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["cpu_isa"] = simclr::cpu::isa_name(simclr::cpu::active_isa());
  info["built_with_torch"] = SIMCLR_STRING(SIMCLR_TORCH_VERSION);
#ifdef USE_CUDA
  info["cuda"] = SIMCLR_STRING(SIMCLR_CUDA_VERSION);
  info["cuda_archs"] = SIMCLR_STRING(SIMCLR_CUDA_ARCHS);
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of simclr_fast (registered as torch.ops.simclr_fast.*)";
  m.def("build_info", &build_info, "How this extension was built: compiler, CPU instruction set in use, CUDA, archs.");
}
