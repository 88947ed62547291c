// Runs a block: which fiber goes next, what happens when one returns, and how a block that cannot go on is described.
#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <utility>

#include "options.h"
#include "sanitizers.h"

namespace simt {

__thread const Coordinates* coordinates = nullptr;

namespace {

thread_local Block* current_block = nullptr;

std::string format(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

}  // namespace

std::string format(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

uint64_t Random::next() {
  uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

void Random::shuffle(std::vector<int>& v) {
  for (int i = static_cast<int>(v.size()) - 1; i > 0; --i) std::swap(v[i], v[below(i + 1)]);
}

Block& Block::current() { return *current_block; }

std::string Block::run(const Launch& launch, uint3 index, uint64_t seed) {
  start(launch, index);
  Random random(seed);
  while (!is_done()) {
    if (!advance(seed, random) && error_.empty()) error_ = deadlock();
  }
  return finish();
}

void Block::start(const Launch& launch, uint3 index) {
  launch_ = &launch;
  block_index_ = index;
  thread_count_ = alive_ = launch.threads();
  const size_t stack_bytes = kRaceDetector || !kSanitized ? 128 << 10 : 512 << 10;
  stacks_.reserve(thread_count_, stack_bytes);
  if (static_cast<int>(threads_.size()) < thread_count_) threads_.resize(thread_count_);
  warps_.resize((thread_count_ + kWarpSize - 1) / kWarpSize);
  for (Warp& w : warps_) {
    w.alive = 0;
    for (Meeting& m : w.meetings) m.arrived = 0;
  }
  for (Barrier& b : barriers_) b = Barrier();
  shared_.create(launch.dynamic_bytes);

  adopt_host_thread(host_);
  uint3 thread_index{0, 0, 0};
  for (int i = 0; i < thread_count_; ++i) {
    Thread& t = threads_[i];
    t.index = i;
    t.coordinates = {thread_index, index, launch.block, launch.grid};
    t.state = State::kReady;
    t.copies.copies = t.copies.groups = 0;
    warps_[t.warp()].alive |= 1u << t.lane();
    create_fiber(t.context, stacks_.stack(i), stacks_.usable_bytes(), &Block::thread_main);
    if (++thread_index.x < launch.block.x) continue;
    thread_index.x = 0;
    if (++thread_index.y < launch.block.y) continue;
    thread_index.y = 0;
    ++thread_index.z;
  }
  thread_order_.resize(thread_count_);
  warp_order_.resize(warps_.size());
  std::iota(thread_order_.begin(), thread_order_.end(), 0);
  std::iota(warp_order_.begin(), warp_order_.end(), 0);
}

void Block::stop(const std::string& error) {
  if (error_.empty()) error_ = error;
}

std::string Block::finish() {
  current_block = nullptr;
  coordinates = nullptr;
  for (int i = 0; i < thread_count_; ++i) {
    Thread& t = threads_[i];
    if (t.state != State::kReturned) release_in_the_name_of(t.context, host_, &launch_order_);
    destroy_fiber(t.context);
  }
  if (error_.empty()) {
    shared_.destroy(&launch_order_);
  } else {  // some threads were left where they stood: the race detector must not see a free
    join();
    shared_.abandon();
  }
  return std::exchange(error_, std::string());
}

// ---- Scheduling: even seeds take every thread once per round, odd ones let one warp run as far as it can, which is
// what exposes a missing barrier between warps.

bool Block::advance(uint64_t seed, Random& random) {
  if (seed % 2 == 0) {
    if (seed != 0) random.shuffle(thread_order_);
    return run_in_order(thread_order_);
  }
  bool progress = false;
  random.shuffle(warp_order_);
  for (int w : warp_order_) progress |= run_warp_ahead(w, random);
  return progress;
}

bool Block::can_run(Thread& t) const {
  if (t.state == State::kAwaitingGrid && launch_->grid_barrier->phase != t.grid_phase) t.state = State::kReady;
  return t.state == State::kReady && error_.empty();
}

bool Block::run_in_order(const std::vector<int>& order) {
  bool progress = false;
  for (int i : order) {
    if (!can_run(threads_[i])) continue;
    resume(threads_[i]);
    progress = true;
  }
  return progress;
}

bool Block::run_warp_ahead(int warp, Random& random) {
  const int first = warp * kWarpSize;
  const int lanes = std::min(kWarpSize, thread_count_ - first);
  const bool descending = random.below(2) == 1;
  bool progress = false;
  for (bool again = true; again && error_.empty();) {
    again = false;
    for (int k = 0; k < lanes; ++k) {
      Thread& t = threads_[first + (descending ? lanes - 1 - k : k)];
      if (!can_run(t)) continue;
      resume(t);
      progress = again = true;
    }
  }
  return progress;
}

void Block::resume(Thread& t) {
  current_block = this;
  running_ = &t;
  coordinates = &t.coordinates;
  switch_to(host_, t.context);
}

void Block::wait(State state, const char* what, Site site) {
  Thread& t = thread();
  t.state = state;
  t.waits_for = what;
  t.site = site;
  switch_to(t.context, host_);
}

void Block::thread_main() {
  Block& block = current();
  entered_from(block.host_);
  block.launch_->call(block.launch_->body);
  block.thread_returned(block.thread());
  block.leave();
}

// The running fiber ends, at the kernel's end or at an error.
void Block::leave() {
  order_release(&launch_order_);
  switch_for_good(thread().context, host_);
}

void Block::thread_returned(Thread& t) {
  t.state = State::kReturned;
  --alive_;
  warps_[t.warp()].alive &= ~(1u << t.lane());
  lane_left(t.warp());
  if (barrier_complete(barriers_[0])) open_barrier(0);
}

// ---- Errors.

std::string Block::place(const Thread& t, Site site) const {
  return std::string("kernel ") + launch_->kernel + ", block " + format(block_index_) + ", thread " +
         format(t.coordinates.thread) + ", " + format(site);
}

void Block::fail(const std::string& what, Site site) {
  if (error_.empty()) error_ = what + " [" + place(thread(), site) + "]";
  leave();
}

void Block::check_shared_limit(Site site) {
  if (shared_.static_bytes() + shared_.dynamic_bytes() <= launch_->shared_limit) return;
  fail("shared memory: " + std::to_string(shared_.static_bytes()) + " static + " +
           std::to_string(shared_.dynamic_bytes()) + " dynamic bytes exceed the block's " +
           std::to_string(launch_->shared_limit),
       site);
}

std::string Block::deadlock() const {
  constexpr int kShown = 8;
  std::string message = std::string("deadlock in kernel ") + launch_->kernel + ", block " + format(block_index_) + ":";
  int shown = 0;
  for (int first = 0; first < thread_count_;) {
    const Thread& t = threads_[first];
    int last = first;  // threads of a run that wait at one place are told together
    auto alike = [&](const Thread& o) {
      return o.state == t.state && (t.state == State::kReturned || (same(o.site, t.site) && o.mask == t.mask));
    };
    while (last + 1 < thread_count_ && alike(threads_[last + 1])) ++last;
    if (shown++ < kShown) {
      message += "\n  threads " + format(t.coordinates.thread) + " to " + format(threads_[last].coordinates.thread);
      if (t.state == State::kReturned) {
        message += " have returned";
      } else {
        message += std::string(" wait in ") + t.waits_for + " at " + format(t.site);
        char mask[32];
        std::snprintf(mask, sizeof mask, " for lanes %08x", t.mask);
        if (t.state == State::kInWarpOperation) message += mask;
      }
    }
    first = last + 1;
  }
  return message;
}

void fail(const char* what, Site site) { Block::current().fail(what, site); }

}  // namespace simt
