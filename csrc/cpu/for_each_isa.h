// Compiles the file named by SIMCLR_ISA_BODY once per instruction set, into simclr::cpu::{portable,avx2,avx512}.
//
// The body is plain C++ over GCC vector extensions of kVectorBytes; it may include nothing (include what it needs
// before this file) and its lambdas must be small enough to inline. Pick one with SIMCLR_DISPATCH(function)(arguments).
// No include guard: every kernel file includes it once with its own body.

#include "../isa.h"

#ifndef SIMCLR_DISPATCH
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SIMCLR_X86 1
#define SIMCLR_DISPATCH(...)                                                                        \
  (::simclr::cpu::active_isa() == ::simclr::cpu::Isa::kAvx512 ? &::simclr::cpu::avx512::__VA_ARGS__ \
   : ::simclr::cpu::active_isa() == ::simclr::cpu::Isa::kAvx2 ? &::simclr::cpu::avx2::__VA_ARGS__   \
                                                              : &::simclr::cpu::portable::__VA_ARGS__)
#else
#define SIMCLR_X86 0
#define SIMCLR_DISPATCH(...) (&::simclr::cpu::portable::__VA_ARGS__)
#endif
#endif

namespace simclr::cpu::portable {
constexpr int kVectorBytes = 16;
#include SIMCLR_ISA_BODY
}  // namespace simclr::cpu::portable

#if SIMCLR_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace simclr::cpu::avx2 {
constexpr int kVectorBytes = 32;
#include SIMCLR_ISA_BODY
}  // namespace simclr::cpu::avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif
namespace simclr::cpu::avx512 {
constexpr int kVectorBytes = 64;
#include SIMCLR_ISA_BODY
}  // namespace simclr::cpu::avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#undef SIMCLR_ISA_BODY
