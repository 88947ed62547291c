// The Python module simclr_fast._C: loading it registers the kernels; build_info() says how it was built.
// It keeps to Python's limited API, so that one module serves every Python from 3.10 on.
#include <Python.h>

#include <exception>

#include "isa.h"

namespace {

#define SIMCLR_STRING_(x) #x
#define SIMCLR_STRING(x) SIMCLR_STRING_(x)

#ifdef __clang__
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif
#ifdef USE_CUDA
constexpr const char* kCuda = SIMCLR_STRING(SIMCLR_CUDA_VERSION);
constexpr const char* kCudaArchs = SIMCLR_STRING(SIMCLR_CUDA_ARCHS);
#else
constexpr const char* kCuda = nullptr;  // None in Python
constexpr const char* kCudaArchs = "";
#endif

PyObject* build_info(PyObject*, PyObject*) {
  try {
    const char* isa = simclr::cpu::isa_name(simclr::cpu::active_isa());
    return Py_BuildValue("{s:s,s:s,s:s,s:z,s:s}", "compiler", kCompiler, "cpu_isa", isa, "built_with_torch",
                         SIMCLR_STRING(SIMCLR_TORCH_VERSION), "cuda", kCuda, "cuda_archs", kCudaArchs);
  } catch (const std::exception& error) {  // an instruction set that is unknown or missing
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "How this extension was built: compiler, CPU instruction set in use, CUDA, archs."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Compiled kernels of simclr_fast (registered as torch.ops.simclr_fast.*)",
    -1,
    functions,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
