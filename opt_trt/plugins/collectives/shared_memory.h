// Ranks of one node: each writes its part into memory all of them map, all meet, each reads.
//
// Chunks alternate between two halves of the memory, so one meeting a chunk is enough: who writes into a half again has
// met all others since, and they had read it before they came. Sums of many ranks meet twice: each sums its slice, then
// all read the slices.
//
// Waiting spins, then yields, then sleeps on a futex: ranks may be more than cores.
#pragma once
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <optional>

#include "group.h"

namespace opt_trt {

constexpr int64_t kOneMeeting = 16384;  // floats that every rank sums itself; of more each sums its slice
constexpr int kYields = 1000;           // before a rank sleeps: about as many µs
constexpr long kSleepNs = 20'000'000;   // between looks whether the others live
constexpr double kGraceS = 5;           // for a launcher to end the world when a rank has ended, and say why

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

struct alignas(64) Seat {  // what one rank tells the others, on a cache line of its own
  std::atomic<uint32_t> arrived;   // meetings it has come to
  std::atomic<uint32_t> sleepers;  // ranks that sleep until it comes
  std::atomic<int32_t> pid;
};

class SharedMemoryGroup : public Group {
 public:
  // `memory` is zero at first and shared by all ranks; all of its bytes are used.
  SharedMemoryGroup(void* memory, int64_t bytes, int64_t ranks, int64_t rank, double timeout_s, int64_t spins)
      : Group(ranks, capacity(bytes, ranks), timeout_s), rank_(rank), spins_(spins), seats_(static_cast<Seat*>(memory)),
        floats_(reinterpret_cast<float*>(seats_ + ranks)) {
    seats_[rank].pid = getpid();
    meet();  // all pids are known
  }

 private:
  static int64_t capacity(int64_t bytes, int64_t ranks) {
    const int64_t floats = (bytes - ranks * int64_t{sizeof(Seat)}) / int64_t{sizeof(float)} / (2 * (ranks + 1));
    if (floats < kLanes) throw std::runtime_error("opt_trt: too little shared memory");
    return floats / kLanes * kLanes;
  }

  float* slot(int64_t r) { return floats_ + (half_ * (ranks_ + 1) + r) * capacity_; }  // slot `ranks_` holds the sum

  std::vector<const float*> exchange(const float* x, int64_t count) override {
    half_ ^= 1;
    std::copy_n(x, count, slot(rank_));
    meet();
    std::vector<const float*> parts(ranks_);
    for (int64_t r = 0; r < ranks_; ++r) parts[r] = r == rank_ ? x : slot(r);
    return parts;
  }

  void reduce_chunk(const float* x, float* out, int64_t count) override {
    const std::vector<const float*> parts = exchange(x, count);
    if (ranks_ == 2 || count <= kOneMeeting) return sum_in_order(parts, 0, count, out);
    const int64_t each = (count + ranks_ - 1) / ranks_;
    sum_in_order(parts, std::min(rank_ * each, count), std::min((rank_ + 1) * each, count), slot(ranks_));
    meet();
    std::copy_n(slot(ranks_), count, out);
  }

  void meet() {
    const uint32_t meeting = ++meetings_;
    Seat& mine = seats_[rank_];
    mine.arrived.store(meeting);  // sequentially consistent, as is the load: one of the two sides sees the other
    if (mine.sleepers.load()) syscall(SYS_futex, &mine.arrived, FUTEX_WAKE, ranks_, nullptr, nullptr, 0);
    for (int64_t r = 0; r < ranks_; ++r)
      if (r != rank_) wait(r, meeting);
  }

  static bool here(const Seat& seat, uint32_t meeting) {
    return static_cast<int32_t>(seat.arrived.load(std::memory_order_acquire) - meeting) >= 0;  // it may be one ahead
  }

  void wait(int64_t r, uint32_t meeting) {
    Seat& seat = seats_[r];
    for (int64_t i = 0; i < spins_; ++i) {
      if (here(seat, meeting)) return;
      pause();
    }
    for (int i = 0; i < kYields; ++i) {
      if (here(seat, meeting)) return;
      sched_yield();
    }
    std::optional<Deadline> ended;
    for (const Deadline deadline(timeout_s_); !here(seat, meeting);) {
      sleep(seat, meeting);
      if (!ended && kill(seat.pid, 0) && errno == ESRCH) ended.emplace(kGraceS);
      if (here(seat, meeting)) return;
      if (ended && ended->passed()) lost("rank " + std::to_string(r) + " has ended");
      if (deadline.passed()) lost("rank " + std::to_string(r) + " did not come within the time given");
    }
  }

  static void sleep(Seat& seat, uint32_t meeting) {
    const timespec most{0, kSleepNs};
    seat.sleepers.fetch_add(1);
    const uint32_t seen = seat.arrived.load();
    if (static_cast<int32_t>(seen - meeting) < 0)
      syscall(SYS_futex, &seat.arrived, FUTEX_WAIT, seen, &most, nullptr, 0);
    seat.sleepers.fetch_sub(1);
  }

  const int64_t rank_, spins_;
  Seat* const seats_;
  float* const floats_;
  int64_t half_ = 0;
  uint32_t meetings_ = 0;
};

}  // namespace opt_trt
