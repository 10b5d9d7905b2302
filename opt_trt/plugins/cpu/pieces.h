// The pieces of a job that a thread has before it, of which other threads may take the later half.
#pragma once
#include <atomic>
#include <cstdint>

namespace opt_trt {

struct Range {
  uint32_t first = 0, last = 0;

  uint32_t count() const { return last - first; }
};

// A range of pieces. The owner takes pieces from its beginning, in the order in which they lie in memory.
class alignas(64) Pieces {
 public:
  void put(Range pieces) { range_.store(packed(pieces), std::memory_order_release); }

  // Take the first piece; return an empty range if there is none.
  Range take_first() {
    return take([](Range all) { return Range{all.first, all.first + 1}; }, [](Range all, Range taken) {
      return Range{taken.last, all.last};
    });
  }

  // Take the later half of the pieces, or the last one; return an empty range if there is none.
  Range take_half() {
    return take([](Range all) { return Range{all.first + all.count() / 2, all.last}; }, [](Range all, Range taken) {
      return Range{all.first, taken.first};
    });
  }

 private:
  static uint64_t packed(Range r) { return uint64_t(r.last) << 32 | r.first; }

  template <typename Part, typename Rest>
  Range take(Part part, Rest rest) {
    uint64_t seen = range_.load(std::memory_order_acquire);
    for (;;) {
      const Range all{uint32_t(seen), uint32_t(seen >> 32)};
      if (!all.count()) return {};
      const Range taken = part(all);
      if (range_.compare_exchange_weak(seen, packed(rest(all, taken)), std::memory_order_acq_rel)) return taken;
    }
  }

  std::atomic<uint64_t> range_{0};
};

}  // namespace opt_trt
