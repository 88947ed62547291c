// The order in which the block pairs of a symmetric matrix are visited by several threads.
//
// A visit adds to sums that belong to its two groups of blocks. For these to be formed in place, and in an order that
// does not depend on the number of threads, each group's visits are made one after the other, as they stand in a list. A
// thread takes the first visit of the list that no other of its groups' is before; it sleeps only while there is none,
// and no thread waits for all others but at the end. The list is made of rounds whose visits share no group.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "../parallel.h"

namespace simclr::cpu {

struct Block {
  int64_t begin, end;
};

// [0, size) in blocks; the last may be shorter.
class Blocks {
 public:
  Blocks(int64_t size, int64_t block) : size_(size), block_(block) {}
  int64_t count() const { return (size_ + block_ - 1) / block_; }
  Block operator[](int64_t i) const { return {i * block_, std::min(size_, (i + 1) * block_)}; }

 private:
  int64_t size_, block_;
};

// A group of blocks, [begin, end) of them, and another one; or a group with itself.
struct Visit {
  Blocks blocks;
  Block rows, columns;
  bool itself;

  // Calls f(I, J) for every two blocks, those of a column one after the other.
  template <class F>
  void each_pair(const F& f) const {
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      for (int64_t i = itself ? j : rows.begin; i < rows.end; ++i) f(blocks[i], blocks[j]);
    }
  }
};

class SymmetricSchedule {
 public:
  // Every two groups and every group by itself: a tournament (the circle method), in whose rounds every group meets one
  // other. With an odd number of groups, one is paired with the number behind the last, and sits the round out.
  explicit SymmetricSchedule(const Blocks& blocks) : blocks_(blocks), groups_(groups_of(blocks)) {
    const int64_t seats = groups_ + groups_ % 2, circle = seats - 1;
    for (int64_t round = 0; round < circle; ++round) {
      add(round, circle);
      for (int64_t k = 1; k < seats / 2; ++k) add((round + k) % circle, (round + circle - k) % circle);
    }
    for (int64_t group = 0; group < groups_; ++group) add(group, group);
  }

  // Calls visit(Visit) once for every two groups, and for every group with itself.
  template <class F>
  void run(const Parallel& parallel, const F& visit) const {
    const int64_t threads = std::min<int64_t>(parallel.threads(), groups_);
    if (threads <= 1) {
      for (const Pair& pair : list_) visit(visit_of(pair));
      return;
    }
    Queue queue(*this);
    parallel(threads, 1, [&](int64_t, int64_t) { queue.work([&](int64_t k) { visit(visit_of(list_[k])); }); });
  }

 private:
  using Pair = std::array<int64_t, 2>;  // of groups

  // Up to 8 groups, then groups of four blocks, whose numbers stay in the cache for a visit. As many threads as half of
  // the groups find work at a time. With more than 64 groups, threads would wait for the queue.
  static int64_t groups_of(const Blocks& blocks) {
    return std::clamp<int64_t>((blocks.count() + 3) / 4, std::min<int64_t>(8, blocks.count()), 64);
  }

  void add(int64_t a, int64_t b) {
    if (a < groups_ && b < groups_) list_.push_back({a, b});
  }

  Visit visit_of(const Pair& pair) const {
    const auto group = [this](int64_t index) {
      return Block{index * blocks_.count() / groups_, (index + 1) * blocks_.count() / groups_};
    };
    return {blocks_, group(pair[0]), group(pair[1]), pair[0] == pair[1]};
  }

  // Which visits may be made, as others are done.
  class Queue {
   public:
    explicit Queue(const SymmetricSchedule& schedule)
        : left_(static_cast<int64_t>(schedule.list_.size())), before_(left_, 0), after_(left_, {kNone, kNone}) {
      std::vector<int64_t> last(schedule.groups_, kNone);
      for (int64_t index = 0; index < left_; ++index) {
        for (const int64_t group : schedule.list_[index]) {
          if (const int64_t earlier = last[group]; earlier != kNone && earlier != index) {
            (after_[earlier][0] == kNone ? after_[earlier][0] : after_[earlier][1]) = index;
            ++before_[index];
          }
          last[group] = index;
        }
        if (before_[index] == 0) push(index);
      }
    }

    // Takes visits until none is left to take; one whose visit fails leaves none to the others.
    template <class F>
    void work(const F& visit) {
      std::unique_lock<std::mutex> lock(mutex_);
      while (left_ > 0) {
        if (ready_.empty()) {
          // wait() itself is of libstdc++ 12, which not every system that can run the rest has.
          changed_.wait_for(lock, std::chrono::hours(1));
          continue;
        }
        const int64_t index = pop();
        --left_;
        lock.unlock();
        try {
          visit(index);
        } catch (...) {
          lock.lock();
          left_ = 0;
          changed_.notify_all();
          throw;
        }
        lock.lock();
        for (const int64_t next : after_[index]) {
          if (next != kNone && --before_[next] == 0) push(next);
        }
        changed_.notify_all();
      }
    }

   private:
    static constexpr int64_t kNone = -1;

    void push(int64_t index) {
      ready_.push_back(index);
      std::push_heap(ready_.begin(), ready_.end(), std::greater<>());
    }
    int64_t pop() {
      std::pop_heap(ready_.begin(), ready_.end(), std::greater<>());
      const int64_t index = ready_.back();
      ready_.pop_back();
      return index;
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t left_;                               // to be taken
    std::vector<int64_t> ready_;                 // a heap, the first of the list on top
    std::vector<int64_t> before_;                // how many visits of its groups must be done, of those next to it
    std::vector<std::array<int64_t, 2>> after_;  // the next visits of its groups
  };

  Blocks blocks_;
  int64_t groups_;
  std::vector<Pair> list_;
};

}  // namespace simclr::cpu
