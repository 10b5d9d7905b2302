// y[T, N] = x[T, K] · W * scale + bias, ReLU, + residual, with W interleaved over 16 outputs: [N / 16, K, 16].
//
// int4 lies two input features to a byte, [N / 16, ceil(K / 2), 16]; integer weights are widened to fp32, which is exact.
// A thread owns consecutive groups of 16 outputs, so it streams its weights once, in order, for every ROWS tokens.
// Accumulation is fp32 in the order of K whatever the number of tokens.
#pragma once
#include "../cpp/simd.h"

namespace opt_trt {

constexpr int64_t kPrefetchBytes = 4096;

struct Gemm {
  const float* x;         // [T, K]
  const void* weight;     // [groups, K, 16]
  const float* scale;     // [N] or null
  const float* bias;      // [N] or null
  const float* residual;  // [T, N] or null
  float* y;               // [T, N]
  int64_t tokens, k, n;
  bool relu;

  int64_t groups() const { return (n + kLanes - 1) / kLanes; }
};

// Called once per tile, not inlined: copies of it in every tile were most of the compilation.
[[gnu::noinline]] inline void finish(const Gemm& g, int64_t token, int64_t group, const vec& total) {
  const int64_t first = group * kLanes;
  const int64_t count = g.n - first < kLanes ? g.n - first : kLanes;
  float out[kLanes];
  store(out, total);
  for (int64_t i = 0; i < count; ++i) {
    float value = (g.scale ? out[i] * g.scale[first + i] : out[i]) + (g.bias ? g.bias[first + i] : 0.0f);
    if (g.relu) value = value > 0.0f ? value : 0.0f;
    g.y[token * g.n + first + i] = value + (g.residual ? g.residual[token * g.n + first + i] : 0.0f);
  }
}

// Input features a stored row of 16 elements holds.
template <typename W> constexpr int kSteps = 1;
template <> constexpr int kSteps<int4x2> = 2;

template <typename W>
void load_row(const W* p, vec (&values)[kSteps<W>]) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kPrefetchBytes);
  if constexpr (kSteps<W> == 2) load_pairs(p, values);
  else values[0] = load(p);
}

template <typename W>
const W* weight_of(const Gemm& g, int64_t group) {
  return static_cast<const W*>(g.weight) + group * ((g.k + kSteps<W> - 1) / kSteps<W>) * kLanes;
}

// One stored row of every group, of which the first STEPS input features count.
template <typename W, int STEPS, int ROWS, int GROUPS>
inline void accumulate(const Gemm& g, const W* (&weight)[GROUPS], const float* x, int64_t row, vec (&total)[ROWS][GROUPS]) {
  vec w[GROUPS][kSteps<W>];
  for (int j = 0; j < GROUPS; ++j) load_row(weight[j] + row * kLanes, w[j]);
  for (int s = 0; s < STEPS; ++s)
    for (int i = 0; i < ROWS; ++i) {
      const vec value = splat(x[i * g.k + row * kSteps<W> + s]);
      for (int j = 0; j < GROUPS; ++j) total[i][j] += value * w[j][s];
    }
}

// ROWS tokens × GROUPS groups of outputs, all accumulators in registers.
template <typename W, int ROWS, int GROUPS>
void tile(const Gemm& g, int64_t token, int64_t group) {
  const W* weight[GROUPS];
  for (int j = 0; j < GROUPS; ++j) weight[j] = weight_of<W>(g, group + j);
  const float* x = g.x + token * g.k;
  const int64_t whole = g.k / kSteps<W>;
  vec total[ROWS][GROUPS] = {};
  for (int64_t row = 0; row < whole; ++row) accumulate<W, kSteps<W>>(g, weight, x, row, total);
  if (g.k % kSteps<W>) accumulate<W, 1>(g, weight, x, whole, total);
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < GROUPS; ++j) finish(g, token + i, group + j, total[i][j]);
}

// One token: four partial sums hide the latency of the multiply-add.
template <typename W>
void one_row(const Gemm& g, int64_t token, int64_t group) {
  constexpr int kPartial = 4, kRows = kPartial / kSteps<W>;
  const W* weight = weight_of<W>(g, group);
  const float* x = g.x + token * g.k;
  vec total[kPartial] = {}, w[kSteps<W>];
  int64_t k = 0;
  for (; k + kPartial <= g.k; k += kPartial, weight += kRows * kLanes)
    for (int u = 0; u < kRows; ++u) {
      load_row(weight + u * kLanes, w);
      for (int s = 0; s < kSteps<W>; ++s) total[u * kSteps<W> + s] += splat(x[k + u * kSteps<W> + s]) * w[s];
    }
  for (; k < g.k; k += kSteps<W>, weight += kLanes) {
    load_row(weight, w);
    for (int s = 0; s < kSteps<W> && k + s < g.k; ++s) total[s] += splat(x[k + s]) * w[s];
  }
  finish(g, token, group, (total[0] + total[1]) + (total[2] + total[3]));
}

// All tokens of the groups [group, group + GROUPS), ROWS at a time, the rest one at a time: in the order of tiles when
// ORDERED, so that a token's sums do not depend on how many tokens come with it.
template <typename W, int ROWS, int GROUPS, bool ORDERED>
void panel(const Gemm& g, int64_t group) {
  int64_t token = 0;
  if constexpr (ROWS > 1)
    for (; token + ROWS <= g.tokens; token += ROWS) tile<W, ROWS, GROUPS>(g, token, group);
  for (; token < g.tokens; ++token)
    if constexpr (ORDERED) tile<W, 1, GROUPS>(g, token, group);
    else
      for (int j = 0; j < GROUPS; ++j) one_row<W>(g, token, group + j);
}

template <typename W, int ROWS, int GROUPS, bool ORDERED = false>
void gemm(const Gemm& g) {
  const int64_t groups = g.groups();
  const int64_t panels = groups / GROUPS;
#pragma omp parallel
  {
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < panels; ++p) panel<W, ROWS, GROUPS, ORDERED>(g, p * GROUPS);
#pragma omp for schedule(static)
    for (int64_t group = panels * GROUPS; group < groups; ++group) panel<W, ROWS, 1, ORDERED>(g, group);
  }
}

}  // namespace opt_trt
