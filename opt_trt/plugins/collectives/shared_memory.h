// Ranks of one node: each writes its part to memory that all of them map, all wait at a barrier, and each reads.
//
// Chunks alternate between two halves of the memory, so one barrier a chunk is enough: before a rank writes to a half
// again, all ranks have passed another barrier, and they read the half before that. Sums of many ranks take two
// barriers: each rank sums its slice, then all read the slices.
//
// A waiting rank spins, then yields, then sleeps on a futex, because there may be more ranks than cores.
#pragma once
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <optional>

#include "../cpu/waiting.h"
#include "group.h"

namespace opt_trt {

constexpr int64_t kOneBarrier = 16384;  // up to so many floats every rank sums all; of more, each sums its slice
constexpr int kYields = 1000;           // before a rank sleeps; each takes about 1 µs
constexpr long kSleepNs = 20'000'000;   // between checks that the others still run
constexpr double kGraceS = 5;           // after a rank has ended, for its launcher to end all ranks and say why

struct alignas(64) RankState {  // the state of one rank that the others read, on its own cache line
  std::atomic<uint32_t> arrived;   // barriers that it has reached
  std::atomic<uint32_t> sleepers;  // ranks that sleep until it arrives
  std::atomic<int32_t> pid;
};

class SharedMemoryGroup : public Group {
 public:
  // `memory` is zero at first and shared by all ranks; all of its bytes are used.
  SharedMemoryGroup(void* memory, int64_t bytes, int64_t ranks, int64_t rank, double timeout_s, int64_t spins)
      : Group(ranks, capacity(bytes, ranks), timeout_s), rank_(rank), spins_(spins),
        states_(static_cast<RankState*>(memory)), floats_(reinterpret_cast<float*>(states_ + ranks)) {
    states_[rank].pid = getpid();
    barrier();  // from now on all pids are known
  }

 private:
  static int64_t capacity(int64_t bytes, int64_t ranks) {
    const int64_t floats = (bytes - ranks * int64_t{sizeof(RankState)}) / int64_t{sizeof(float)} / (2 * (ranks + 1));
    if (floats < kLanes) throw std::runtime_error("opt_trt: too little shared memory");
    return floats / kLanes * kLanes;
  }

  float* slot(int64_t r) { return floats_ + (half_ * (ranks_ + 1) + r) * capacity_; }  // slot `ranks_` is for the sum

  std::vector<const float*> exchange(const float* x, int64_t count) override {
    half_ ^= 1;
    std::copy_n(x, count, slot(rank_));
    barrier();
    std::vector<const float*> parts(ranks_);
    for (int64_t r = 0; r < ranks_; ++r) parts[r] = r == rank_ ? x : slot(r);
    return parts;
  }

  void reduce_chunk(const float* x, float* out, int64_t count) override {
    const std::vector<const float*> parts = exchange(x, count);
    if (ranks_ == 2 || count <= kOneBarrier) return sum_in_order(parts, 0, count, out);
    const int64_t each = (count + ranks_ - 1) / ranks_;
    sum_in_order(parts, std::min(rank_ * each, count), std::min((rank_ + 1) * each, count), slot(ranks_));
    barrier();
    std::copy_n(slot(ranks_), count, out);
  }

  void barrier() {
    const uint32_t number = ++barriers_;
    RankState& mine = states_[rank_];
    mine.arrived.store(number);  // sequentially consistent, like the load: one of the two sides sees the other
    if (mine.sleepers.load()) syscall(SYS_futex, &mine.arrived, FUTEX_WAKE, ranks_, nullptr, nullptr, 0);
    for (int64_t r = 0; r < ranks_; ++r)
      if (r != rank_) wait(r, number);
  }

  static bool has_arrived(const RankState& state, uint32_t number) {
    return static_cast<int32_t>(state.arrived.load(std::memory_order_acquire) - number) >= 0;  // it may be one ahead
  }

  void wait(int64_t r, uint32_t number) {
    RankState& state = states_[r];
    for (int64_t i = 0; i < spins_; ++i) {
      if (has_arrived(state, number)) return;
      pause();
    }
    for (int i = 0; i < kYields; ++i) {
      if (has_arrived(state, number)) return;
      sched_yield();
    }
    std::optional<Deadline> ended;
    for (const Deadline deadline(timeout_s_); !has_arrived(state, number);) {
      sleep(state, number);
      if (!ended && kill(state.pid, 0) && errno == ESRCH) ended.emplace(kGraceS);
      if (has_arrived(state, number)) return;
      if (ended && ended->passed()) lost("rank " + std::to_string(r) + " has ended");
      if (deadline.passed()) lost("rank " + std::to_string(r) + " did not come within the time given");
    }
  }

  static void sleep(RankState& state, uint32_t number) {
    const timespec most{0, kSleepNs};
    state.sleepers.fetch_add(1);
    const uint32_t seen = state.arrived.load();
    if (static_cast<int32_t>(seen - number) < 0)
      syscall(SYS_futex, &state.arrived, FUTEX_WAIT, seen, &most, nullptr, 0);
    state.sleepers.fetch_sub(1);
  }

  const int64_t rank_, spins_;
  RankState* const states_;
  float* const floats_;
  int64_t half_ = 0;
  uint32_t barriers_ = 0;
};

}  // namespace opt_trt
