// Chooses the instruction set once per process.
#include "../isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace simclr::cpu {
namespace {

Isa detect() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kPortable;
}

Isa choose() {
  const Isa best = detect();
  const char* wish = std::getenv("SIMCLR_FAST_ISA");
  if (wish == nullptr) return best;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(wish) != isa_name(isa)) continue;
    if (isa > best) {
      throw std::invalid_argument(std::string("SIMCLR_FAST_ISA=") + wish + ": this processor has " + isa_name(best) +
                                  " at best; unset it or choose a lower one");
    }
    return isa;
  }
  throw std::invalid_argument(std::string("SIMCLR_FAST_ISA=") + wish + ": choose portable, avx2 or avx512");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace simclr::cpu
