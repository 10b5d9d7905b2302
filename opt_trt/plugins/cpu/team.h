// The threads of kernels. Work comes in pieces, so that a thread that another program keeps from running holds back only
// the piece it computes; the others, at least the caller, compute the rest.
//
// Every thread has a run of neighbouring pieces of its own, whose weights it reads in order. Which thread computes a
// piece changes nothing in its result.
#pragma once
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "helper.h"
#include "pieces.h"

namespace opt_trt {

constexpr int64_t kPatienceNs = 100'000;  // how long a caller waits for a piece beyond the time that pieces take

class Team {
 public:
  // Return the team of this process. It is never destroyed, because its threads run until the process ends.
  static Team& of_process() {
    static Team& team = *new Team;
    return team;
  }

  // Return how many threads stay away at the moment, because other programs use their cores.
  int64_t resting() const {
    return std::count_if(helpers_.begin(), helpers_.end(), [](const auto& helper) { return helper->is_resting(); });
  }

  // Call work(i) for all i < count, in any order and in up to `width` threads; throw the first exception of a piece. A job
  // within a piece, and that of a second thread, are computed by the thread that asks.
  template <typename Work>
  void for_each(int64_t count, int64_t width, const Work& work) {
    const int64_t wanted = std::min(count, width);
    if (wanted <= 1 || is_busy_.test_and_set(std::memory_order_acquire)) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    const auto call = [](const void* w, uint32_t i) { (*static_cast<const Work*>(w))(i); };
    number_.width.store(width, std::memory_order_relaxed);
    compute({call, &work, wanted}, uint32_t(count));
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    is_busy_.clear(std::memory_order_release);
    if (failure) std::rethrow_exception(failure);
  }

 private:
  struct Job {
    void (*call)(const void* work, uint32_t piece);
    const void* work;
    int64_t wanted;  // threads
  };

  Team() {
    pthread_atfork(nullptr, nullptr, [] { of_process().forget(); });
  }

  // Begin anew in a child process, which has no threads but the one that forked.
  void forget() {
    for (auto& helper : helpers_) (void)helper.release();  // their memory may be in any state
    helpers_.clear();
    pieces_ = std::vector<Pieces>(1);
    number_.value = 0;
    is_busy_.clear();
  }

  // Have a helper for every slot but the caller's, or as many as the system gives.
  void recruit(int64_t wanted) {
    if (int64_t(pieces_.size()) < wanted) pieces_ = std::vector<Pieces>(wanted);
    while (int64_t(helpers_.size()) < wanted - 1) {
      const auto work = [](void* team, int64_t slot) { static_cast<Team*>(team)->take_part(slot); };
      auto helper = std::make_unique<Helper>(number_, work, this, helpers_.size() + 1);
      if (!helper->start()) return;
      helpers_.push_back(std::move(helper));
    }
  }

  void compute(Job job, uint32_t count) {
    recruit(job.wanted);
    job.wanted = std::min<int64_t>(job.wanted, helpers_.size() + 1);
    job_ = job;
    has_failed_.clear();
    if (!hand_out(count)) return take_part(0);
    const uint32_t number = number_.value.load(std::memory_order_relaxed) + 1;
    number_.core.store(sched_getcpu(), std::memory_order_relaxed);
    number_.value.store(number);
    for (int64_t i = 1; i < job.wanted; ++i) helpers_[i - 1]->call();
    const int64_t started = now_ns();
    take_part(0);
    number_.value.store(number + 1);
    const int64_t patience = kPatienceNs + (now_ns() - started) / 2;
    for (auto& helper : helpers_) await(*helper, number, patience);  // also one that came though it was not called
  }

  // Divide the pieces evenly among the caller and the helpers that do not rest; return whether there are such helpers.
  bool hand_out(uint32_t count) {
    const auto helps = [&](int64_t slot) { return slot == 0 || !helpers_[slot - 1]->is_resting(); };
    uint64_t takers = 0, taker = 0;
    std::vector<char>& helping = helping_;
    helping.assign(job_.wanted, 0);
    for (int64_t slot = 0; slot < job_.wanted; ++slot) takers += helping[slot] = helps(slot);
    for (int64_t slot = 0; slot < job_.wanted; ++slot) {
      const uint64_t next = taker + helping[slot];
      pieces_[slot].put({uint32_t(count * taker / takers), uint32_t(count * next / takers)});
      taker = next;
    }
    return takers > 1;
  }

  // Compute pieces until none is left: first the slot's own, then half of those of another one.
  void take_part(int64_t slot) {
    if (slot >= job_.wanted) return;
    do {
      for (Range piece; (piece = pieces_[slot].take_first()).count();) call(piece.first);
    } while (take_others(slot));
  }

  bool take_others(int64_t slot) {
    for (int64_t i = 1; i < job_.wanted; ++i) {
      const Range pieces = pieces_[(slot + i) % job_.wanted].take_half();
      if (!pieces.count()) continue;
      pieces_[slot].put(pieces);
      return true;
    }
    return false;
  }

  void call(uint32_t piece) {
    try {
      job_.call(job_.work, piece);
    } catch (...) {
      if (!has_failed_.test_and_set()) failure_ = std::current_exception();
    }
  }

  static void await(Helper& helper, uint32_t job, int64_t patience) {
    if (!helper.is_in(job)) return;
    for (const int64_t end = now_ns() + patience; now_ns() < end;)
      for (int i = 0; i < kLooks; ++i, pause())
        if (!helper.is_in(job)) return;
    helper.await_late(job);
  }

  JobNumber number_;
  std::atomic_flag is_busy_, has_failed_;
  Job job_{};
  std::exception_ptr failure_;
  std::vector<Pieces> pieces_{1};
  std::vector<char> helping_;
  std::vector<std::unique_ptr<Helper>> helpers_;
};

}  // namespace opt_trt
