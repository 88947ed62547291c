// How the torch-free CPU kernels run on several threads: on a pool that the caller provides.
#pragma once

#include <cstdint>

namespace simclr {

// Body runs over [begin, end); For splits [begin, end) into chunks of at least `grain` and runs Body on each, in
// parallel. The bindings pass torch's own intra-op pool, so torch.set_num_threads governs and no second pool spins
// beside it.
class Parallel {
 public:
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  using For = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  Parallel(For parallel_for, int threads) : for_(parallel_for), threads_(threads) {}

  // Calls f(begin, end) on chunks of [0, n). Which thread gets which chunk is not specified: f must not care.
  template <class F>
  void operator()(int64_t n, int64_t grain, const F& f) const {
    if (n <= 0) return;
    Body body = [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); };
    for_(0, n, grain, body, const_cast<F*>(&f));
  }

  int threads() const { return threads_; }

 private:
  For for_;
  int threads_;
};

}  // namespace simclr
