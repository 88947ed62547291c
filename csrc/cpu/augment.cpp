// The fused augmentation on the CPU: picks the instruction set, deals views to threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../augment_color.h"
#include "../augment_launch.h"
#include "../augment_resample.h"
#include "../half.h"
#include "augment_workspace.h"

#define SIMCLR_ISA_BODY "augment_body.h"
#include "for_each_isa.h"

namespace simclr::cpu {
namespace {

// The allocator takes large outputs from the system and gives them back at every call, and faulting their 4 KiB pages
// in takes as long as making the views. Huge pages fault 512 times less. A hint: without it only time is lost.
void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(kHugePage - 1);
  if (last >= first + 4 * kHugePage) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

void augment(const AugmentArgs& args, const Parallel& parallel) {
  prefer_huge_pages(args.out, int64_t{args.views} * args.batch * args.images.channels * args.out_height *
                                  args.out_width * pixel_bytes(args.out_type));
  const auto make_view = SIMCLR_DISPATCH(make_view);
  // Views differ in cost (a blurred one takes twice as long), so each thread takes the next one that is left. The views
  // of one image follow each other: the second finds the source in the cache.
  const int64_t total = int64_t{args.views} * args.batch;
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(parallel.threads(), total);
  parallel(workers, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < total;) {
        make_view(args, static_cast<int32_t>(task % args.views), static_cast<int32_t>(task / args.views), &workspace);
      }
    }
  });
}

void augment_sample(const AugmentSampleArgs& args, const Parallel& parallel) {
  parallel(int64_t{args.views} * args.batch, 256, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t view = task / args.batch, row = task % args.batch;
      const int64_t* size = args.ragged == nullptr ? nullptr : args.ragged + row * kRaggedColumns;
      args.params[task] = sample_augment(args.recipe, static_cast<uint64_t>(*args.seed),
                                         static_cast<uint64_t>(args.indices == nullptr ? row : args.indices[row]),
                                         static_cast<uint32_t>(view),
                                         size == nullptr ? args.height : static_cast<int32_t>(size[kRaggedHeight]),
                                         size == nullptr ? args.width : static_cast<int32_t>(size[kRaggedWidth]));
    }
  });
}

}  // namespace simclr::cpu
