// What operators tell of themselves while a step is profiled: their kind, begin and end.
//
// Steps are run by one thread, so nothing is locked; an operator that nobody records reads one flag.
#pragma once
#include <chrono>
#include <cstdint>

namespace opt_trt {

enum Kind : int64_t { kGemm, kAttention };

struct Recorder {
  int64_t (*events)[3] = nullptr;  // kind, begin and end in ns of the monotonic clock; null while nobody records
  int64_t capacity = 0, count = 0;
};

inline Recorder recorder;

// Records the time from its making to its end.
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
