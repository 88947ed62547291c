// Barriers: a block's, named ones and a grid's; and the report of one that threads of a warp reach apart.
#include <string>

#include "block.h"
#include "sanitizers.h"

namespace simt {

bool Block::barrier_complete(const Barrier& b) const {
  return b.arrived > 0 && b.arrived == (b.expected == 0 ? alive_ : b.expected);
}

// Counts the running thread in; true when it is the last.
bool Block::arrive(int id, int threads, int predicate, const char* name, Site site) {
  Thread& t = thread();
  t.site = site;
  t.barrier = id;
  if (id < 0 || id >= kBarriers) fail(std::string(name) + ": barrier " + std::to_string(id) + " is not in 0..15", site);
  if (threads % kWarpSize != 0 || threads < 0 || threads > round_up_to_warps(thread_count_)) {
    fail(std::string(name) + ": " + std::to_string(threads) + " threads is not a multiple of 32 within the block",
         site);
  }
  Barrier& b = barriers_[id];
  if (b.arrived > 0 && b.expected != threads) {
    fail(std::string(name) + ": barrier " + std::to_string(id) + " is being waited for with another thread count",
         site);
  }
  const unsigned bit = 1u << t.lane();
  if (b.lanes[t.warp()] & bit) {
    fail(std::string(name) + ": arrives a second time before barrier " + std::to_string(id) + " has opened", site);
  }
  // The hardware's barrier instruction is one for the warp: its lanes reach it together. Other warps may use another.
  if (b.lanes[t.warp()] == 0) b.site[t.warp()] = site;
  if (!same(b.site[t.warp()], site)) {
    fail("divergent barrier: other lanes of the warp are at the one in " + format(b.site[t.warp()]), site);
  }
  b.expected = threads;
  b.lanes[t.warp()] |= bit;
  b.votes += predicate != 0;
  ++b.arrived;
  order_release(&b.order[b.phase % 2]);
  return barrier_complete(b);
}

Votes Block::barrier_sync(int id, int threads, int predicate, const char* name, Site site) {
  Thread& t = thread();
  const bool last = arrive(id, threads, predicate, name, site);
  Barrier& b = barriers_[id];
  char* const order = &b.order[b.phase % 2];
  t.state = State::kAtBarrier;
  if (last) {
    open_barrier(id);
    if (!error_.empty()) leave();
  } else {
    wait(State::kAtBarrier, name, site);
  }
  order_acquire(order);
  return t.votes;
}

void Block::open_barrier(int id) {
  check_divergence(id);
  Barrier& b = barriers_[id];
  for (int i = 0; i < thread_count_; ++i) {
    Thread& t = threads_[i];
    if (t.state != State::kAtBarrier || t.barrier != id) continue;
    t.votes = {b.votes, b.arrived};
    t.state = State::kReady;
  }
  const int phase = b.phase + 1;
  b = Barrier();
  b.phase = phase;
}

// A barrier that opens while some lanes of a warp are elsewhere counts more threads than came.
void Block::check_divergence(int id) {
  const Barrier& b = barriers_[id];
  for (size_t w = 0; w < warps_.size(); ++w) {
    const unsigned missing = b.lanes[w] == 0 ? 0 : warps_[w].alive & ~b.lanes[w];
    if (missing == 0) continue;
    const Thread& t = threads_[w * kWarpSize + __builtin_ctz(missing)];
    error_ = "divergent barrier: this lane did not come to barrier " + std::to_string(id) +
             ", other lanes of its warp did at " + format(b.site[w]) + " [" + place(t, t.site) + "]";
    return;
  }
}

// As cooperative_groups has it: the block's first thread comes to the grid's barrier for all of them.
void Block::grid_sync(Site site) {
  constexpr char kName[] = "this_grid().sync()";
  GridBarrier* const grid = launch_->grid_barrier;
  if (grid == nullptr) fail("a grid's barrier in a launch whose blocks need not run at once", site);
  barrier_sync(0, 0, 0, kName, site);
  if (Thread& t = thread(); t.index == 0) {
    char* const order = &grid->order[grid->phase % 2];
    order_release(order);
    t.grid_phase = grid->phase;
    if (++grid->arrived == grid->blocks) {
      grid->arrived = 0;
      ++grid->phase;
    } else {
      wait(State::kAwaitingGrid, kName, site);
    }
    order_acquire(order);
  }
  barrier_sync(0, 0, 0, kName, site);
}

Votes barrier_sync(int id, int threads, int predicate, const char* name, Site site) {
  return Block::current().barrier_sync(id, threads, predicate, name, site);
}

void grid_sync(Site site) { Block::current().grid_sync(site); }

void memory_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace simt
