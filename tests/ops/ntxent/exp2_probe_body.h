// 2^x over an array for one instruction set; included by exp2_probe.cpp through for_each_isa.h.

#include "../../../csrc/cpu/simd_body.h"

// n is a multiple of the vector length.
template <class T>
void apply(const T* x, T* y, int64_t n, int flushed) {
  using V = typename Simd<T>::V;
  for (int64_t i = 0; i < n; i += Simd<T>::kLanes) {
    V v;
    std::memcpy(&v, x + i, sizeof(v));
    v = flushed ? exp2_flushed<T>(v) : exp2_in_range<T>(v);
    std::memcpy(y + i, &v, sizeof(v));
  }
}
