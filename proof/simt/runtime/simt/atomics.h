// Atomic read-modify-writes on 2-, 4- and 8-byte types. They are sequentially consistent here and relaxed on a GPU: a
// missing fence beside an atomic does not show.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace simt {

template <class T>
struct Word {
  using type = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  static_assert(sizeof(T) == sizeof(type) && std::is_trivially_copyable_v<T>, "no atomic operation on this type");
};

// Replaces *address by update(*address) at once; returns what was there.
template <class T, class Update>
T atomic_update(T* address, Update update) {
  using W = typename Word<T>::type;
  W* word = reinterpret_cast<W*>(address);
  W seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);
  for (;;) {
    T old;
    std::memcpy(&old, &seen, sizeof old);
    const T wanted = update(old);
    W bits;
    std::memcpy(&bits, &wanted, sizeof bits);
    if (__atomic_compare_exchange_n(word, &seen, bits, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return old;
  }
}

template <class T>
using Same = typename std::common_type<T>::type;  // keeps the second argument out of deduction

}  // namespace simt

template <class T>
T atomicAdd(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return old < value ? old : value; });
}
template <class T>
T atomicAnd(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicOr(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicXor(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old ^ value); });
}
template <class T>
T atomicExch(T* address, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, simt::Same<T> expected, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return simt::atomic_update(address, [=](unsigned old) { return old >= last ? 0u : old + 1; });
}
