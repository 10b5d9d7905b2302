// A thread that helps with jobs, and stays away while other programs use its core.
//
// A helper spins between jobs, then sleeps. If it was kept from running while it spun, or kept the caller waiting, its
// core is shared: it rests, longer each time. Then it spins for a while on trial, and returns if nothing interrupts it.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>

#include "waiting.h"

namespace opt_trt {

constexpr int64_t kSpinNs = 200'000;              // between jobs, before a helper sleeps
constexpr int64_t kInterruptedNs = 200'000;       // between two looks at the clock: another thread had the core
constexpr int64_t kTrialNs = 10'000'000;          // longer than Linux lets a thread run before it runs another one
constexpr int64_t kShortestRestNs = 20'000'000;   // doubled with each trial that fails
constexpr int64_t kLongestRestNs = 1'280'000'000;
constexpr int kLooks = 32;                        // at the current job, between two looks at the clock

// The number of the current job: odd while helpers may join it, even while there is none.
struct alignas(64) JobNumber {
  std::atomic<uint32_t> value{0};
  std::atomic<int> core{-1};      // of the thread that has the job
  std::atomic<int64_t> width{0};  // threads of the team, the caller included

  static bool is_open(uint32_t number) { return number & 1; }
};

class alignas(64) Helper {
 public:
  // `work(team, slot)` computes pieces of the job that `number` counts.
  using Work = void (*)(void* team, int64_t slot);
  Helper(JobNumber& number, Work work, void* team, int64_t slot)
      : number_(number), work_(work), team_(team), slot_(slot) {}

  // Start the thread; return whether the system had one. It takes no signals: those are for the program's own threads.
  bool start() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    const bool done = pthread_create(&thread, nullptr, [](void* p) -> void* {
      static_cast<Helper*>(p)->live();
      return nullptr;
    }, this) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (done) pthread_detach(thread);
    return done;
  }

  bool is_resting() const { return state_.load(std::memory_order_relaxed) == kResting; }

  // Wake it if it sleeps, after a job was opened.
  void call() {
    uint32_t asleep = kAsleep;
    if (state_.load() == kAsleep && state_.compare_exchange_strong(asleep, kAwake)) wake(state_);
  }

  // Return whether the helper has joined a job that was closed and has not left it.
  bool is_in(uint32_t job) const { return joined_.load() == job; }

  // Sleep until the helper has left a job; it keeps others waiting, so it rests after it.
  void await_late(uint32_t job) {
    is_late_.store(true);
    while (is_in(job)) sleep_while(joined_, job);
  }

 private:
  enum State : uint32_t { kAwake, kAsleep, kResting };

  void live() {
    for (uint32_t seen = 0;;) {
      seen = next_job(seen);
      joined_.store(seen);  // sequentially consistent, like the load: the caller sees it, or it sees the job closed
      if (number_.value.load() == seen) work_(team_, slot_);
      joined_.store(0);
      if (is_late_.load()) {
        wake(joined_);
        is_late_.store(false);
        rest();
      }
    }
  }

  bool is_new(uint32_t job, uint32_t seen) const { return JobNumber::is_open(job) && job != seen; }

  // Return the number of an open job other than `seen`.
  uint32_t next_job(uint32_t seen) {
    int64_t started = now_ns();
    for (int64_t before = started, now;; before = now) {
      for (int i = 0; i < kLooks; ++i, pause())
        if (const uint32_t job = number_.value.load(std::memory_order_acquire); is_new(job, seen)) return job;
      now = now_ns();
      const bool is_interrupted = now - before > kInterruptedNs, is_wanted = slot_ < number_.width.load();
      if (!is_interrupted && is_wanted && now - started < kSpinNs) continue;
      if (is_interrupted) rest();
      else sleep(seen);
      started = now = now_ns();
    }
  }

  void sleep(uint32_t seen) {
    state_.store(kAsleep);
    while (state_.load() == kAsleep && !is_new(number_.value.load(), seen)) sleep_while(state_, kAsleep);
    state_.store(kAwake);
  }

  // Stay away until a trial succeeds, or until no job came during a whole rest.
  void rest() {
    state_.store(kResting);
    const int64_t now = now_ns();
    if (now - returned_ > kLongestRestNs) rest_ns_ = kShortestRestNs;
    for (bool is_free = false; !is_free;) {
      const uint32_t before = number_.value.load();
      const int64_t end = now_ns() + rest_ns_;
      for (int64_t left = rest_ns_; left > 0; left = end - now_ns()) sleep_while(state_, kResting, left);
      is_free = number_.value.load() == before || on_trial();
      rest_ns_ = std::min(2 * rest_ns_, kLongestRestNs);
    }
    returned_ = now_ns();
    state_.store(kAwake);
  }

  // Spin, and return whether this thread had a core for itself.
  bool on_trial() const {
    const int64_t started = now_ns();
    for (int64_t before = started; before - started < kTrialNs;) {
      if (sched_getcpu() == number_.core.load(std::memory_order_relaxed)) return false;
      for (int i = 0; i < kLooks; ++i) pause();
      const int64_t now = now_ns();
      if (now - before > kInterruptedNs) return false;
      before = now;
    }
    return true;
  }

  JobNumber& number_;
  const Work work_;
  void* const team_;
  const int64_t slot_;
  std::atomic<uint32_t> state_{kAwake};
  std::atomic<uint32_t> joined_{0};  // the job that it computes, 0 for none
  std::atomic<bool> is_late_{false};
  int64_t rest_ns_ = kShortestRestNs, returned_ = 0;
};

}  // namespace opt_trt
