// The CPU instruction sets that kernels are compiled for, and the one chosen at run time.
#pragma once

namespace simclr::cpu {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best instruction set this processor has; SIMCLR_FAST_ISA=portable|avx2|avx512 lowers it (read once).
// Throws std::invalid_argument for another value, or for one that the processor lacks.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace simclr::cpu
