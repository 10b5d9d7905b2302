// Claims about the team of threads: `team CLAIM` exits 0 if the claim holds.
#include "opt_trt/plugins/cpu/team.h"

#include <sys/wait.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>

using opt_trt::Team;

namespace {

Team& team() { return Team::of_process(); }

bool each_once(int64_t count, int64_t width, int repeats = 1) {
  std::vector<std::atomic<int>> calls(count);
  for (int i = 0; i < repeats; ++i) team().for_each(count, width, [&](int64_t piece) { ++calls[piece]; });
  return std::all_of(calls.begin(), calls.end(), [&](const auto& n) { return n == repeats; });
}

bool every_piece_is_computed_once() {
  bool holds = true;
  for (int64_t width : {1, 2, 3, 8, 2, 5, 1, 2})  // also narrower than before
    for (int64_t count : {0, 1, 2, 3, 7, 64, 1000}) holds = holds && each_once(count, width, 50);
  return holds;
}

bool a_job_within_a_piece_is_computed() {
  std::atomic<int> calls = 0;
  team().for_each(8, 3, [&](int64_t) { team().for_each(5, 3, [&](int64_t) { ++calls; }); });
  return calls == 40;
}

bool jobs_of_several_threads_are_computed() {
  std::vector<std::thread> callers;
  std::atomic<int> held = 0;
  for (int i = 0; i < 4; ++i) callers.emplace_back([&] { held += each_once(100, 3, 100); });
  for (auto& caller : callers) caller.join();
  return held == 4;
}

bool an_exception_reaches_the_caller() {
  std::atomic<int> others = 0, caught = 0;
  for (int i = 0; i < 100; ++i) try {
      team().for_each(16, 3, [&](int64_t piece) {
        if (piece == i % 16) throw std::runtime_error("piece");
        ++others;
      });
    } catch (const std::runtime_error&) { ++caught; }
  return caught == 100 && others == 1500 && each_once(16, 3);
}

// A helper that computes a piece for ever longer holds back no other piece. With fixed halves this would never end.
bool others_compute_what_a_late_helper_has_before_it() {
  const auto caller = std::this_thread::get_id();
  for (std::atomic<bool> was_late = false; !was_late;) {
    std::atomic<int> done = 0;
    team().for_each(64, 2, [&](int64_t) {
      if (std::this_thread::get_id() != caller && !was_late.exchange(true))
        while (done < 63) opt_trt::pause();
      ++done;
    });
  }
  return each_once(64, 2, 1000);
}

// A helper that kept the caller waiting rests, and comes back.
bool a_late_helper_rests_and_returns() {
  const auto caller = std::this_thread::get_id();
  std::atomic<bool> is_late = true, has_rested = false;
  std::atomic<int> returned = 0;
  for (const int64_t end = opt_trt::now_ns() + 60'000'000'000; !returned && opt_trt::now_ns() < end;) {
    team().for_each(2, 2, [&](int64_t) {
      if (std::this_thread::get_id() == caller) return;
      if (has_rested) ++returned;
      for (const int64_t e = opt_trt::now_ns() + 3'000'000; is_late && opt_trt::now_ns() < e;) opt_trt::pause();
    });
    if (team().resting()) has_rested = true, is_late = false;
  }
  return returned > 0;
}

bool a_forked_child_computes() {
  if (!each_once(64, 3, 100)) return false;
  const pid_t child = fork();
  if (!child) _exit(each_once(64, 3, 100) ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0 && each_once(64, 3, 100);
}

#define CLAIM(name) {#name, name}
const struct { const char* name; bool (*holds)(); } kClaims[] = {
    CLAIM(every_piece_is_computed_once), CLAIM(a_job_within_a_piece_is_computed),
    CLAIM(jobs_of_several_threads_are_computed), CLAIM(an_exception_reaches_the_caller),
    CLAIM(others_compute_what_a_late_helper_has_before_it), CLAIM(a_late_helper_rests_and_returns),
    CLAIM(a_forked_child_computes)};

}  // namespace

int main(int, char** argv) {
  for (const auto& claim : kClaims)
    if (!std::strcmp(claim.name, argv[1])) return claim.holds() ? 0 : 1;
  return 2;
}
