// A thread block: its fibers, its scheduler, its barriers and its warps. Internal to the runtime.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fiber.h"
#include "sanitizers.h"
#include "shared_memory.h"
#include "simt/api.h"

namespace simt {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kBarriers = 16;

// A cp.async that has been issued and not waited for.
struct PendingCopy {
  char* shared;
  const char* global;
  int bytes;
  int source_bytes;
};

// A thread's copies in the order issued, and the marks that commits have left. No container: what a fiber allocates or
// moves through the standard library, the race detector would take for the kernel's doing.
struct CopyQueue {
  static constexpr int kMaxCopies = 512, kMaxGroups = 64;
  PendingCopy copy[kMaxCopies];
  int copies = 0;  // issued and not done
  int group_end[kMaxGroups];
  int groups = 0;  // committed and not waited for
};

enum class State : uint8_t { kReady, kAtBarrier, kInWarpOperation, kAwaitingGrid, kReturned };

struct Thread {
  Context context;
  Coordinates coordinates;
  int index = 0;  // linear, in the block
  State state = State::kReturned;
  // Where and why it waits.
  const char* waits_for = "";
  Site site{"", 0};
  int barrier = 0;
  unsigned mask = 0;
  int grid_phase = 0;  // whose end it waits for
  Votes votes{};
  CopyQueue copies;

  int lane() const { return index % kWarpSize; }
  int warp() const { return index / kWarpSize; }
};

struct Barrier {
  int arrived = 0;
  int expected = 0;  // fixed by the first to arrive; 0: all threads that have not returned (__syncthreads)
  int votes = 0;
  unsigned lanes[kMaxThreads / kWarpSize] = {};  // of each warp, which have arrived
  Site site[kMaxThreads / kWarpSize];            // and where
  int phase = 0;
  char order[2];  // addresses for the race detector, used in turn: a late leaver must not see the next phase
};

// One operation that lanes of a warp do together: the last lane to arrive does it for all.
struct WarpOperation {
  const char* name;
  bool whole_warp;     // all 32 lanes must take part
  bool same_site;      // lanes must be at one place in the source
  bool orders_memory;  // __syncwarp alone does
  void (*exchange)(void* const* payloads, unsigned lanes);
};

struct Meeting {  // lanes of a warp that wait for each other; free while none has arrived
  const WarpOperation* operation = nullptr;
  unsigned mask = 0;
  unsigned arrived = 0;
  Site site{"", 0};
  void* payload[kWarpSize];
  int phase = 0;
  char order[2];
};

struct Warp {
  unsigned alive = 0;
  Meeting meetings[kWarpSize];  // more than one is used only where lanes of disjoint masks have parted
};

// A small, fast, seeded generator (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
  void shuffle(std::vector<int>& v);

 private:
  uint64_t state_;
};

// The barrier of a launch whose blocks run side by side, in one thread of the host.
struct GridBarrier {
  int blocks;
  int arrived = 0;
  int phase = 0;
  char order[2];  // as a Barrier's
};

struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t dynamic_bytes;
  size_t shared_limit;  // static and dynamic together
  void (*call)(const void* body);
  const void* body;
  GridBarrier* grid_barrier;  // null: blocks run one after the other
  int threads() const { return static_cast<int>(block.x * block.y * block.z); }
};

std::string format(Site site);  // "file:line"
bool same(Site a, Site b);

class Block {
 public:
  // One block of the launch, from its first thread to its last; returns an error message, empty when all is well.
  std::string run(const Launch& launch, uint3 index, uint64_t seed);

  // The same in parts, for blocks that run side by side. advance() returns false where no thread can go on.
  void start(const Launch& launch, uint3 index);
  bool advance(uint64_t seed, Random& random);
  bool is_done() const { return alive_ == 0 || !error_.empty(); }
  const std::string& error() const { return error_; }
  void stop(const std::string& error);  // in the middle of its work, for that reason
  std::string finish();                 // returns the error
  std::string deadlock() const;

  // For the race detector: all blocks run so far happened before what the caller does next.
  void join() { order_acquire(&launch_order_); }

  static Block& current();
  Thread& thread() { return *running_; }

  [[noreturn]] void fail(const std::string& what, Site site);
  Votes barrier_sync(int id, int threads, int predicate, const char* name, Site site);
  void warp_operation(const WarpOperation& operation, unsigned mask, void* payload, Site site);
  void grid_sync(Site site);

  SharedMemory& shared() { return shared_; }
  void check_shared_limit(Site site);

 private:
  static void thread_main();
  [[noreturn]] void leave();
  bool can_run(Thread& t) const;
  bool run_in_order(const std::vector<int>& order);
  bool run_warp_ahead(int warp, Random& random);
  void resume(Thread& t);
  void wait(State state, const char* what, Site site);
  void thread_returned(Thread& t);
  static int round_up_to_warps(int threads) { return (threads + kWarpSize - 1) / kWarpSize * kWarpSize; }
  bool arrive(int id, int threads, int predicate, const char* name, Site site);
  bool barrier_complete(const Barrier& b) const;
  void open_barrier(int id);
  void check_divergence(int id);
  Meeting& meeting_for(const WarpOperation& operation, unsigned mask, Site site);
  void complete(Meeting& meeting, int warp);
  void lane_left(int warp);
  std::string place(const Thread& t, Site site) const;

  const Launch* launch_ = nullptr;
  uint3 block_index_{};
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> thread_order_, warp_order_;
  Barrier barriers_[kBarriers];
  int thread_count_ = 0;
  int alive_ = 0;
  Thread* running_ = nullptr;
  Context host_;
  StackArena stacks_;
  std::string error_;
  SharedMemory shared_;
  char launch_order_ = 0;
};

}  // namespace simt
