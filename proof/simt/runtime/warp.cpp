// Warp operations: lanes meet, and the last one to come does the exchange for all.
#include "block.h"
#include "sanitizers.h"

namespace simt {

// Finds the lanes that wait for the running one and that it waits for, or starts a meeting. Where only one side waits
// for the other, the other may still come.
Meeting& Block::meeting_for(const WarpOperation& operation, unsigned mask, Site site) {
  Warp& warp = warps_[thread().warp()];
  const unsigned bit = 1u << thread().lane();
  Meeting* free_one = nullptr;
  for (Meeting& m : warp.meetings) {
    if (m.arrived == 0) {
      free_one = &m;
      continue;
    }
    if ((m.mask & bit) == 0 || (m.arrived & mask) == 0) continue;
    if (m.operation != &operation || m.mask != mask || (operation.same_site && !same(m.site, site))) {
      fail(std::string("divergent warp: this lane is in ") + operation.name + ", lanes that it waits for are in " +
               m.operation->name + " at " + format(m.site) + (m.mask != mask ? " with another mask" : ""),
           site);
    }
    return m;
  }
  free_one->operation = &operation;
  free_one->mask = mask;
  free_one->site = site;
  return *free_one;
}

void Block::warp_operation(const WarpOperation& operation, unsigned mask, void* payload, Site site) {
  Thread& t = thread();
  Warp& warp = warps_[t.warp()];
  const unsigned bit = 1u << t.lane();
  if ((mask & bit) == 0) fail(std::string(operation.name) + ": the calling lane is not in its own mask", site);
  if (operation.whole_warp && warp.alive != ~0u) {
    fail(std::string(operation.name) + ": needs all 32 lanes, some do not exist or have returned", site);
  }
  Meeting& meeting = meeting_for(operation, mask, site);
  meeting.payload[t.lane()] = payload;
  meeting.arrived |= bit;
  t.mask = mask;
  char* const order = &meeting.order[meeting.phase % 2];
  if (operation.orders_memory) order_release(order);
  if (meeting.arrived == (mask & warp.alive)) {
    complete(meeting, t.warp());
  } else {
    wait(State::kInWarpOperation, operation.name, site);
  }
  if (operation.orders_memory) order_acquire(order);
}

void Block::complete(Meeting& meeting, int warp) {
  const unsigned lanes = meeting.arrived;
  if (meeting.operation->exchange != nullptr) meeting.operation->exchange(meeting.payload, lanes);
  meeting.arrived = 0;
  ++meeting.phase;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    Thread& t = threads_[warp * kWarpSize + lane];
    if (t.state == State::kInWarpOperation) t.state = State::kReady;
  }
}

// A lane has returned: those that waited for it alone go on, as on the hardware.
void Block::lane_left(int warp) {
  Warp& w = warps_[warp];
  for (Meeting& m : w.meetings) {
    if (m.arrived == 0) continue;
    if (m.operation->whole_warp) {
      if (error_.empty()) {
        error_ = std::string(m.operation->name) + ": a lane returned while others wait for it [" +
                 place(thread(), m.site) + "]";
      }
    } else if (m.arrived == (m.mask & w.alive)) {
      complete(m, warp);
    }
  }
}

// ---- The operations. Values travel as 64 bits; what a lane reads from one that takes no part is undefined: all ones.
namespace {

struct ShuffleLane {
  uint64_t in, out;
  Shuffle kind;
  int argument, width;
};

int shuffle_source(const ShuffleLane& s, int lane) {
  const int base = lane & ~(s.width - 1);
  int from = lane;
  switch (s.kind) {
    case Shuffle::kIndex:
      return base + (s.argument & (s.width - 1));
    case Shuffle::kUp:
      from = lane - s.argument;
      return from < base ? lane : from;
    case Shuffle::kDown:
      from = lane + s.argument;
      return from >= base + s.width ? lane : from;
    case Shuffle::kXor:
      from = lane ^ s.argument;
      return from >= base + s.width ? lane : from;
  }
  return lane;
}

void exchange_shuffle(void* const* payload, unsigned lanes) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    ShuffleLane& me = *static_cast<ShuffleLane*>(payload[lane]);
    const int from = shuffle_source(me, lane);
    me.out = (lanes >> from & 1) ? static_cast<ShuffleLane*>(payload[from])->in : ~uint64_t{0};
  }
}

struct BallotLane {
  uint64_t in;
  unsigned out;
};

void exchange_ballot(void* const* payload, unsigned lanes) {
  unsigned ballot = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) && static_cast<BallotLane*>(payload[lane])->in != 0) ballot |= 1u << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (lanes >> lane & 1) static_cast<BallotLane*>(payload[lane])->out = ballot;
  }
}

void exchange_match_any(void* const* payload, unsigned lanes) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    BallotLane& me = *static_cast<BallotLane*>(payload[lane]);
    me.out = 0;
    for (int other = 0; other < kWarpSize; ++other) {
      if ((lanes >> other & 1) && static_cast<BallotLane*>(payload[other])->in == me.in) me.out |= 1u << other;
    }
  }
}

struct ReduceLane {
  int64_t value;
  Reduction kind;
};

int64_t combine(int64_t a, int64_t b, Reduction kind) {
  switch (kind) {
    case Reduction::kAdd:
      return a + b;
    case Reduction::kMin:
      return a < b ? a : b;
    case Reduction::kMax:
      return a > b ? a : b;
    case Reduction::kAnd:
      return a & b;
    case Reduction::kOr:
      return a | b;
    case Reduction::kXor:
      return a ^ b;
  }
  return a;
}

void exchange_reduce(void* const* payload, unsigned lanes) {
  const ReduceLane* first = nullptr;
  int64_t total = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    const ReduceLane* r = static_cast<ReduceLane*>(payload[lane]);
    total = first == nullptr ? r->value : combine(total, r->value, r->kind);
    first = r;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (lanes >> lane & 1) static_cast<ReduceLane*>(payload[lane])->value = total;
  }
}

const WarpOperation kSync{"__syncwarp", false, false, true, nullptr};
const WarpOperation kShuffle{"__shfl_*_sync", false, true, false, exchange_shuffle};
const WarpOperation kBallot{"a warp vote", false, true, false, exchange_ballot};
const WarpOperation kMatchAny{"__match_any_sync", false, true, false, exchange_match_any};
const WarpOperation kReduce{"__reduce_*_sync", false, true, false, exchange_reduce};

}  // namespace

void warp_sync(unsigned mask, Site site) { Block::current().warp_operation(kSync, mask, nullptr, site); }

uint64_t warp_shuffle(unsigned mask, uint64_t bits, Shuffle kind, int argument, int width, Site site) {
  ShuffleLane lane{bits, 0, kind, argument, width};
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    Block::current().fail("__shfl_*_sync: width must be a power of two up to 32", site);
  }
  Block::current().warp_operation(kShuffle, mask, &lane, site);
  return lane.out;
}

unsigned warp_ballot(unsigned mask, bool predicate, Site site) {
  BallotLane lane{predicate, 0};
  Block::current().warp_operation(kBallot, mask, &lane, site);
  return lane.out;
}

unsigned warp_match_any(unsigned mask, uint64_t bits, Site site) {
  BallotLane lane{bits, 0};
  Block::current().warp_operation(kMatchAny, mask, &lane, site);
  return lane.out;
}

int64_t warp_reduce(unsigned mask, int64_t value, Reduction kind, Site site) {
  ReduceLane lane{value, kind};
  Block::current().warp_operation(kReduce, mask, &lane, site);
  return lane.value;
}

}  // namespace simt
