// y[T, N] = x[T, K] · W + bias, ReLU, + residual, with W interleaved over 16 outputs: [N / 16, K, 16].
//
// A thread owns consecutive groups of 16 outputs, so it streams its weights once, in order, for every ROWS tokens.
// Accumulation is fp32 in the order of K whatever the number of tokens.
#pragma once
#include "../cpp/simd.h"

namespace opt_trt {

struct Gemm {
  const float* x;         // [T, K]
  const void* weight;     // [groups, K, 16]
  const float* bias;      // [N] or null
  const float* residual;  // [T, N] or null
  float* y;               // [T, N]
  int64_t tokens, k, n;
  bool relu;

  int64_t groups() const { return (n + kLanes - 1) / kLanes; }
};

inline void finish(const Gemm& g, int64_t token, int64_t group, vec total) {
  const int64_t first = group * kLanes;
  const int64_t count = g.n - first < kLanes ? g.n - first : kLanes;
  float out[kLanes];
  store(out, total);
  for (int64_t i = 0; i < count; ++i) {
    float value = out[i] + (g.bias ? g.bias[first + i] : 0.0f);
    if (g.relu) value = value > 0.0f ? value : 0.0f;
    g.y[token * g.n + first + i] = value + (g.residual ? g.residual[token * g.n + first + i] : 0.0f);
  }
}

constexpr int64_t kPrefetchBytes = 4096;

// ROWS tokens × GROUPS groups of outputs, all accumulators in registers.
template <typename W, int ROWS, int GROUPS>
void tile(const Gemm& g, int64_t token, int64_t group) {
  const W* weight = static_cast<const W*>(g.weight) + group * g.k * kLanes;
  const float* x = g.x + token * g.k;
  vec total[ROWS][GROUPS] = {};
  for (int64_t k = 0; k < g.k; ++k) {
    vec w[GROUPS];
    for (int j = 0; j < GROUPS; ++j) {
      const W* at = weight + (j * g.k + k) * kLanes;
      __builtin_prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes);
      w[j] = load(at);
    }
    for (int i = 0; i < ROWS; ++i) {
      const vec value = splat(x[i * g.k + k]);
      for (int j = 0; j < GROUPS; ++j) total[i][j] += value * w[j];
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < GROUPS; ++j) finish(g, token + i, group + j, total[i][j]);
}

// One token: four partial sums hide the latency of the multiply-add.
template <typename W>
void one_row(const Gemm& g, int64_t token, int64_t group) {
  const W* weight = static_cast<const W*>(g.weight) + group * g.k * kLanes;
  const float* x = g.x + token * g.k;
  vec total[4] = {};
  int64_t k = 0;
  for (; k + 4 <= g.k; k += 4) {
    __builtin_prefetch(reinterpret_cast<const char*>(weight + k * kLanes) + kPrefetchBytes);
    __builtin_prefetch(reinterpret_cast<const char*>(weight + (k + 2) * kLanes) + kPrefetchBytes);
    for (int u = 0; u < 4; ++u) total[u] += splat(x[k + u]) * load(weight + (k + u) * kLanes);
  }
  for (; k < g.k; ++k) total[0] += splat(x[k]) * load(weight + k * kLanes);
  finish(g, token, group, (total[0] + total[1]) + (total[2] + total[3]));
}

// All tokens of the groups [group, group + GROUPS), ROWS at a time, the rest one at a time.
template <typename W, int ROWS, int GROUPS>
void panel(const Gemm& g, int64_t group) {
  int64_t token = 0;
  if constexpr (ROWS > 1)
    for (; token + ROWS <= g.tokens; token += ROWS) tile<W, ROWS, GROUPS>(g, token, group);
  for (; token < g.tokens; ++token)
    for (int j = 0; j < GROUPS; ++j) one_row<W>(g, token, group + j);
}

template <typename W, int ROWS, int GROUPS>
void gemm(const Gemm& g) {
  const int64_t groups = g.groups();
  const int64_t panels = groups / GROUPS;
#pragma omp parallel
  {
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < panels; ++p) panel<W, ROWS, GROUPS>(g, p * GROUPS);
#pragma omp for schedule(static)
    for (int64_t group = panels * GROUPS; group < groups; ++group) panel<W, ROWS, 1>(g, group);
  }
}

// The tactics, in the order of `ROWS` in interleaved.py.
template <typename W>
void run_gemm(const Gemm& g, int64_t rows) {
  switch (rows) {
    case 1: return gemm<W, 1, 1>(g);
    case 2: return gemm<W, 2, 2>(g);
    case 4: return gemm<W, 4, 4>(g);
    case 8: return gemm<W, 8, 3>(g);
    default: return gemm<W, 12, 2>(g);
  }
}

}  // namespace opt_trt
