// Layer norm of each row of activations, in two passes over memory that stays in the first-level cache.
#pragma once
#include <cmath>

#include "../cpu/simd.h"
#include "../cpu/threads.h"

namespace opt_trt {

constexpr int64_t kAtOnce = 1 << 14;  // numbers that a thread normalizes: fewer take as long as threads take to meet

struct LayerNorm {
  const float *x, *weight, *bias;  // [T, E], [E], [E]
  float* y;                        // [T, E]
  int64_t tokens, features;
  float epsilon;
};

// Return the mean over a row of `value(numbers)`, which is called with sixteen numbers or one.
template <typename Value>
float mean_of(const float* row, int64_t size, Value value) {
  vec total = {};
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) total += value(load(row + d));
  float result = sum(total);
  for (; d < size; ++d) result += value(row[d]);
  return result / float(size);
}

inline void normalize(const LayerNorm& n, int64_t t) {
  const float* x = n.x + t * n.features;
  float* y = n.y + t * n.features;
  const float mean = mean_of(x, n.features, [](auto value) { return value; });
  const float variance = mean_of(x, n.features, [=](auto value) { return (value - mean) * (value - mean); });
  const float scale = 1.0f / std::sqrt(variance + n.epsilon);
  int64_t d = 0;
  for (; d + kLanes <= n.features; d += kLanes)
    store(y + d, (load(x + d) - mean) * scale * load(n.weight + d) + load(n.bias + d));
  for (; d < n.features; ++d) y[d] = (x[d] - mean) * scale * n.weight[d] + n.bias[d];
}

inline void run_layer_norm(const LayerNorm& n) {
  for_each(n.tokens, std::max<int64_t>(kAtOnce / n.features, 1), [&](int64_t t) { normalize(n, t); });
}

}  // namespace opt_trt
