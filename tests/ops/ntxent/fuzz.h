// What the drivers of the losses' CPU kernels share: random numbers, arrays of exactly their size, a loop over cases.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <type_traits>

#include "half.h"
#include "ntxent_launch.h"
#include "similarity_launch.h"

namespace {

using namespace simclr;

std::mt19937 generator(1);

int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }
double unit() { return generator() * 0x1p-32 * 2 - 1; }

const Parallel kSerial([](int64_t begin, int64_t end, int64_t, Parallel::Body body,
                          void* context) { body(begin, end, context); },
                       1);

// An array of its own, so that the sanitizer knows both its ends.
template <class T>
class Array {
 public:
  explicit Array(int64_t size) : data_(static_cast<T*>(std::malloc(size * sizeof(T)))) {
    std::memset(data_, 0xff, size * sizeof(T));
  }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  T* data_;
};

double any_number(bool garbage) {
  const double odd[] = {0.0, -0.0, 1e30, -1e-30, 1e-45, INFINITY, -INFINITY, NAN};
  return garbage && below(6) == 0 ? odd[below(8)] : unit();
}

template <class Z>
constexpr int kDtype = std::is_same_v<Z, float>    ? SIMCLR_FLOAT
                       : std::is_same_v<Z, double> ? SIMCLR_DOUBLE
                       : std::is_same_v<Z, Half>   ? SIMCLR_HALF
                                                   : SIMCLR_BFLOAT16;

using Case = void (*)();

// argv: how many cases, and of how many of the kinds.
int run_cases(char** argv, Case a, Case b, Case c, Case d) {
  const Case kinds[] = {a, b, c, d};
  const int cases = std::atoi(argv[1]), of_kinds = std::atoi(argv[2]);
  for (int k = 0; k < cases; ++k) kinds[k % of_kinds]();
  std::printf("%d cases\n", cases);
  return 0;
}

}  // namespace
