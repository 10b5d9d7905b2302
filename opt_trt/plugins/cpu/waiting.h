// What threads do while they wait: a pause between two looks, and sleep until a word changes.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

namespace opt_trt {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

inline int64_t now_ns() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

// Sleep while a word has a value, at most `ns` nanoseconds if that is positive. It may return sooner.
inline void sleep_while(std::atomic<uint32_t>& word, uint32_t value, int64_t ns = 0) {
  const timespec most{ns / 1'000'000'000, ns % 1'000'000'000};
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, ns > 0 ? &most : nullptr, nullptr, 0);
}

inline void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace opt_trt
