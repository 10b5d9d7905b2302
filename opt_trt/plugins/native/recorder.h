// Record the operators of a profiled step: their kind, beginning and end.
//
// One thread runs the steps, so nothing is locked. Without a profiler, an operator reads one flag.
#pragma once
#include <chrono>
#include <cstdint>

namespace opt_trt {

enum Kind : int64_t { kGemm, kAttention };

struct Recorder {
  int64_t (*events)[3] = nullptr;  // kind, begin and end in ns of the monotonic clock; null if not recording
  int64_t capacity = 0, count = 0;
};

inline Recorder recorder;

// Records the time from its construction to its destruction.
class Recorded {
 public:
  explicit Recorded(Kind kind) : kind_(kind), begin_(recorder.events ? now() : 0) {}
  ~Recorded() {
    if (!begin_ || recorder.count == recorder.capacity) return;
    int64_t(&event)[3] = recorder.events[recorder.count++];
    event[0] = kind_;
    event[1] = begin_;
    event[2] = now();
  }

 private:
  static int64_t now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
  }

  const Kind kind_;
  const int64_t begin_;
};

}  // namespace opt_trt
