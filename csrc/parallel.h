// How the torch-free CPU kernels run on several threads: on a pool that the caller provides.
#pragma once

#include <algorithm>
#include <atomic>
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
    grain = std::max(grain, (n + threads_ - 1) / threads_);
    Body body = [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); };
    for_(0, n, grain, body, const_cast<F*>(&f));
  }

  // Calls f(i) for every i in [0, n), each thread for the first that none has taken: on a busy machine, one that runs
  // seldom does little, and the others do not wait for a share of its.
  template <class F>
  void each(int64_t n, const F& f) const {
    std::atomic<int64_t> next{0};
    (*this)(std::min<int64_t>(n, threads_), 1, [&](int64_t, int64_t) {
      for (int64_t i = next++; i < n; i = next++) f(i);
    });
  }

  int threads() const { return threads_; }

  // The same pool, of which no more threads work than have kLeastWork multiply-adds each. They wait for one another at
  // the end of every loop, on a busy machine for as long as the system runs others: milliseconds, whatever the work.
  // With half of this, NT-Xent of 256 rows of 128 would wait for a second thread that saves nothing even where it need
  // not wait (620 us and 576); with twice this, 512 rows would go forward on one.
  Parallel for_multiply_adds(double total) const {
    constexpr double kLeastWork = 8e6;
    return Parallel(for_, static_cast<int>(std::max(1.0, std::min<double>(threads_, total / kLeastWork))));
  }

 private:
  For for_;
  int threads_;
};

}  // namespace simclr
