// cp.async under two adversarial timings. Late (the default): data land at the wait that covers them, so a missing or
// short wait reads old data or NaN. Eager: they land when issued, so refilling a buffer that others still read shows.
#include <cstring>

#include "block.h"
#include "options.h"
#include "sanitizers.h"

namespace simt {
namespace {

void perform(const PendingCopy& copy) {
  watch_read(copy.global, copy.source_bytes);
  watch_write(copy.shared, copy.bytes);
  std::memcpy(copy.shared, copy.global, copy.source_bytes);
  std::memset(copy.shared + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

void copy_async(void* shared, const void* global, int bytes, int source_bytes, Site site) {
  Block& block = Block::current();
  if (source_bytes < 0 || source_bytes > bytes) block.fail("cp.async: source bytes not in 0..size", site);
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    block.fail("cp.async: an address is not aligned to the copy's " + std::to_string(bytes) + " bytes", site);
  }
  if (!block.shared().contains(shared, bytes)) block.fail("cp.async: the target is not in shared memory", site);
  const PendingCopy copy{static_cast<char*>(shared), static_cast<const char*>(global), bytes, source_bytes};
  if (options().eager_copies) return perform(copy);
  CopyQueue& queue = block.thread().copies;
  if (queue.copies == CopyQueue::kMaxCopies) block.fail("cp.async: more than 512 copies under way in a thread", site);
  queue.copy[queue.copies++] = copy;
}

void copy_async_commit(Site site) {
  Block& block = Block::current();
  CopyQueue& queue = block.thread().copies;
  if (queue.groups == CopyQueue::kMaxGroups) block.fail("cp.async: more than 64 groups under way in a thread", site);
  queue.group_end[queue.groups++] = queue.copies;
}

void copy_async_wait(int pending) {
  CopyQueue& queue = Block::current().thread().copies;
  const int groups = queue.groups - pending;
  if (groups <= 0) return;
  const int done = queue.group_end[groups - 1];
  for (int i = 0; i < done; ++i) perform(queue.copy[i]);
  for (int i = done; i < queue.copies; ++i) queue.copy[i - done] = queue.copy[i];
  for (int i = groups; i < queue.groups; ++i) queue.group_end[i - groups] = queue.group_end[i] - done;
  queue.copies -= done;
  queue.groups -= groups;
}

}  // namespace simt
