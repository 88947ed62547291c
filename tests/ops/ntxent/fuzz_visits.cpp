// Drives the order of visits with random numbers of blocks and threads: every two blocks meet once, no two visits of one
// owner run at a time, and each block meets the others in one order whatever the threads.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "cpu/block_schedule.h"

namespace {

using namespace simclr;
using namespace simclr::cpu;

std::mt19937 generator(1);
int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }

// Every chunk in a thread of its own.
void in_threads(int64_t begin, int64_t end, int64_t, Parallel::Body body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; ++i) threads.emplace_back(body, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
}

[[noreturn]] void wrong(const char* what, int64_t blocks, int threads) {
  std::fprintf(stderr, "wrong visits: %s; %ld blocks, %d threads\n", what, static_cast<long>(blocks), threads);
  std::exit(1);
}

void one_case() {
  const int64_t count = 1 + below(below(4) ? 20 : 150);
  const SymmetricSchedule schedule(Blocks(count * 32 - below(32), 32));
  std::vector<std::vector<int64_t>> of_one_thread;
  for (const int threads : {1, 2, 3, 5}) {
    std::vector<std::atomic<int>> busy(count);
    std::vector<std::vector<int64_t>> met(count);  // by each block, in order
    schedule.run(Parallel(in_threads, threads), [&](const Visit& visit) {
      visit.each_pair([&](Block i, Block j) {
        const int64_t row = i.begin / 32, column = j.begin / 32;
        if (busy[row]++ != 0) wrong("two at a time", count, threads);
        if (column != row && busy[column]++ != 0) wrong("two at a time", count, threads);
        met[row].push_back(column);
        if (column != row) met[column].push_back(row);
        if (column != row) --busy[column];
        --busy[row];
      });
      std::this_thread::yield();
    });
    for (std::vector<int64_t> sorted : met) {
      std::sort(sorted.begin(), sorted.end());
      for (int64_t k = 0; k < count; ++k) {
        if (static_cast<int64_t>(sorted.size()) != count || sorted[k] != k)
          wrong("not every block once", count, threads);
      }
    }
    if (threads == 1) of_one_thread = met;
    if (met != of_one_thread) wrong("another order", count, threads);
  }
}

}  // namespace

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  for (int k = 0; k < cases; ++k) one_case();
  std::printf("%d cases\n", cases);
  return 0;
}
