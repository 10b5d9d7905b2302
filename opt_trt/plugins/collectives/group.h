// What tensor-parallel ranks exchange: sums of fp32 vectors, taken in rank order so that all ranks get the same bits,
// and the parts of a matrix side by side. Long vectors are exchanged in chunks.
#pragma once
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/simd.h"

namespace opt_trt {

// Limits how long a rank waits for the others, so that a missing rank is an error and not a hang.
class Deadline {
 public:
  explicit Deadline(double seconds) : end_(Clock::now() + std::chrono::duration<double>(seconds)) {}
  bool passed() const { return Clock::now() >= end_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::chrono::time_point<Clock, std::chrono::duration<double>> end_;
};

// Compute out[i] = parts[0][i] + parts[1][i] + …
inline void sum_in_order(const std::vector<const float*>& parts, int64_t begin, int64_t end, float* out) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    vec total = load(parts[0] + i);
    for (size_t r = 1; r < parts.size(); ++r) total += load(parts[r] + i);
    store(out + i, total);
  }
  for (; i < end; ++i) {
    float total = parts[0][i];
    for (size_t r = 1; r < parts.size(); ++r) total += parts[r][i];
    out[i] = total;
  }
}

class Group {
 public:
  Group(int64_t ranks, int64_t capacity, double timeout_s)
      : ranks_(ranks), capacity_(capacity), timeout_s_(timeout_s) {}
  virtual ~Group() = default;

  void all_reduce(const float* x, float* out, int64_t count) {
    for (int64_t i = 0; i < count; i += capacity_) reduce_chunk(x + i, out + i, std::min(capacity_, count - i));
  }

  // Gather x [tokens, n] of each rank → out [tokens, features], features ≤ ranks * n.
  void all_gather(const float* x, float* out, int64_t tokens, int64_t n, int64_t features) {
    for (int64_t i = 0; i < tokens * n; i += capacity_) {
      const int64_t count = std::min(capacity_, tokens * n - i);
      const std::vector<const float*> parts = exchange(x + i, count);
      for (int64_t r = 0; r < ranks_; ++r) place(parts[r], i, count, n, r * n, features, out);
    }
  }

 protected:
  // Return the chunks of all ranks in rank order. They are valid during one more exchange.
  virtual std::vector<const float*> exchange(const float* x, int64_t count) = 0;

  virtual void reduce_chunk(const float* x, float* out, int64_t count) {
    sum_in_order(exchange(x, count), 0, count, out);
  }

  [[noreturn]] void lost(const std::string& what) const {
    throw std::runtime_error("opt_trt: tensor-parallel " + what);
  }

  const int64_t ranks_;
  const int64_t capacity_;  // floats of one chunk
  const double timeout_s_;

 private:
  // Copy elements [first, first + count) of a [tokens, n] matrix to columns from `column` of out [tokens, features].
  static void place(
      const float* part, int64_t first, int64_t count, int64_t n, int64_t column, int64_t features, float* out) {
    for (int64_t i = first; i < first + count;) {
      const int64_t token = i / n, feature = i % n;
      const int64_t length = std::min(n - feature, first + count - i);
      const int64_t kept = std::min(length, features - column - feature);
      if (kept > 0) std::copy_n(part + (i - first), kept, out + token * features + column + feature);
      i += length;
    }
  }
};

}  // namespace opt_trt
