// A thread that helps with jobs, and works part time while other programs use its core.
//
// A helper spins between jobs, then sleeps. If it was kept from running while it spun, or kept the caller waiting, its
// core is shared. Then it works in shifts that are shorter than what the scheduler gives a thread at once, and sleeps
// between them, away from the caller's core. Now and then it spins for a while on trial: if nothing interrupts it, the
// core is free again.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>

#include "waiting.h"

namespace opt_trt {

constexpr int64_t kSpinNs = 200'000;               // between jobs, before a helper sleeps
constexpr int64_t kInterruptedNs = 200'000;        // between two looks at the clock: another thread had the core
constexpr int64_t kShiftNs = 500'000;              // of part-time work: with 2 ms a tenth of the shifts was interrupted
constexpr int64_t kBreakNs = 500'000;              // between two shifts
constexpr int64_t kBreaksForWait = 20;             // times what the caller had to wait: it loses a twentieth at most
constexpr int64_t kTrialNs = 10'000'000;           // longer than Linux lets a thread run before it runs another one
constexpr int64_t kFirstTrialNs = 20'000'000;      // from the first shift; doubled with each trial
constexpr int64_t kLatestTrialNs = 1'280'000'000;
constexpr int64_t kFreeNs = 200'000'000;           // a core that was free for so long was not shared before
constexpr int kLooks = 32;                         // at the current job, between two looks at the clock

// The number of the current job: odd while helpers may join it, even while there is none.
struct alignas(64) JobNumber {
  std::atomic<uint32_t> value{0};
  std::atomic<int> core{-1};      // of the thread that has the job
  std::atomic<int64_t> width{0};  // threads of the team, the caller included

  static bool is_open(uint32_t number) { return number & 1; }
};

class alignas(64) Helper {
 public:
  // `work(team, slot)` computes pieces of the current job.
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

  bool is_away() const { return state_.load(std::memory_order_relaxed) == kAway; }
  bool is_part_time() const { return is_part_time_.load(std::memory_order_relaxed); }

  // Return whether the helper should leave its pieces to others; it asks this itself.
  bool is_shift_over() const { return is_part_time() && now_ns() >= shift_end_; }

  // Wake it if it sleeps, after a job was opened.
  void call() {
    uint32_t asleep = kAsleep;
    if (state_.load() == kAsleep && state_.compare_exchange_strong(asleep, kAwake)) wake(state_);
  }

  // Return whether the helper has joined a job that was closed and has not left it.
  bool is_in(uint32_t job) const { return joined_.load() == job; }

  // Sleep until the helper has left a job.
  void await_late(uint32_t job) {
    const int64_t began = now_ns();
    is_late_.store(true);
    while (is_in(job)) sleep_while(joined_, job);
    owed_ns_.fetch_add(kBreaksForWait * (now_ns() - began));
  }

 private:
  enum State : uint32_t { kAwake, kAsleep, kAway };

  void live() {
    sched_getaffinity(0, sizeof(cores_), &cores_);
    for (uint32_t seen = 0;;) {
      seen = next_job(seen);
      joined_.store(seen);  // sequentially consistent, like the load: the caller sees it, or it sees the job closed
      if (number_.value.load() == seen) work_(team_, slot_);
      joined_.store(0);
      if (is_shift_over()) seen = 0;  // it may join the same job again
      if (is_late_.load()) {
        wake(joined_);
        is_late_.store(false);
        share_core();
      }
    }
  }

  bool is_new(uint32_t job, uint32_t seen) const { return JobNumber::is_open(job) && job != seen; }

  // Return the number of an open job other than `seen`.
  uint32_t next_job(uint32_t seen) {
    if (is_shift_over()) take_break(seen);
    int64_t started = now_ns();
    for (int64_t before = started, now;; before = now) {
      for (int i = 0; i < kLooks; ++i, pause())
        if (const uint32_t job = number_.value.load(std::memory_order_acquire); is_new(job, seen)) return job;
      now = now_ns();
      const bool is_interrupted = now - before > kInterruptedNs, is_wanted = slot_ < number_.width.load();
      if (!is_interrupted && !is_shift_over() && is_wanted && now - started < kSpinNs) continue;
      if (is_interrupted) share_core();
      if (is_part_time() && is_wanted) take_break(seen);
      else sleep(seen);
      started = now = now_ns();
    }
  }

  void sleep(uint32_t seen) {
    state_.store(kAsleep);
    while (state_.load() == kAsleep && !is_new(number_.value.load(), seen)) sleep_while(state_, kAsleep);
    state_.store(kAwake);
  }

  // Work part time from now on.
  void share_core() {
    const int64_t now = now_ns();
    shift_end_ = now;
    if (is_part_time_.exchange(true)) return;
    if (now - returned_ > kFreeNs) until_trial_ = kFirstTrialNs;
    next_trial_ = now + until_trial_;
  }

  // Stay away for a while, then begin a shift, or return for good if a trial is due and succeeds. If there is no job,
  // sleep after a trial: the program may be idle for long.
  void take_break(uint32_t seen) {
    const uint32_t before = number_.value.load();
    state_.store(kAway);
    for (bool is_tried = false, goes_on = true; goes_on;) {
      keep_off(number_.core.load(std::memory_order_relaxed));
      stay_away(std::max(kBreakNs, owed_ns_.exchange(0)));
      if (now_ns() >= next_trial_) is_tried = true, try_core();
      goes_on = is_part_time() && (is_idle(before) ? !is_tried : is_on_callers_core());
    }
    shift_end_ = now_ns() + kShiftNs;
    state_.store(kAwake);
    if (is_idle(before)) sleep(seen);
  }

  // Return whether there is no job, and was none since a look at the number.
  bool is_idle(uint32_t before) const { return number_.value.load() == before && !JobNumber::is_open(before); }

  bool is_on_callers_core() const { return sched_getcpu() == number_.core.load(std::memory_order_relaxed); }

  // Sleep, whatever happens.
  void stay_away(int64_t ns) {
    const int64_t end = now_ns() + ns;
    for (int64_t left = ns; left > 0; left = end - now_ns()) sleep_while(state_, kAway, left);
  }

  // Keep off a core, or none if it is -1: the scheduler would wake this thread there and interrupt the caller.
  void keep_off(int core) {
    if (core == avoided_) return;
    cpu_set_t allowed = cores_;
    if (core >= 0) CPU_CLR(core, &allowed);
    if (CPU_COUNT(&allowed) > 0 && !sched_setaffinity(0, sizeof(allowed), &allowed)) avoided_ = core;
  }

  void try_core() {
    if (is_core_free()) {
      is_part_time_.store(false);
      keep_off(-1);
      returned_ = now_ns();
    } else stay_away(kTrialNs);  // the scheduler lets others make up for the time of the trial
    until_trial_ = std::min(2 * until_trial_, kLatestTrialNs);
    next_trial_ = now_ns() + until_trial_;
  }

  // Spin, and return whether this thread had a core for itself.
  bool is_core_free() const {
    const int64_t started = now_ns();
    for (int64_t before = started; before - started < kTrialNs;) {
      if (is_on_callers_core()) return false;
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
  std::atomic<bool> is_late_{false}, is_part_time_{false};
  std::atomic<int64_t> owed_ns_{0};  // of breaks, because the caller had to wait
  cpu_set_t cores_{};
  int avoided_ = -1;
  int64_t shift_end_ = 0, next_trial_ = 0, until_trial_ = kFirstTrialNs, returned_ = 0;
};

}  // namespace opt_trt
