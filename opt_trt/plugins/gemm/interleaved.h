// y[T, N] = x[T, K] · W * scale + bias, ReLU, + residual, with W interleaved over 16 outputs: [N / 16, K, 16].
//
// int4 lies two input features to a byte, [N / 16, ceil(K / 2), 16]; integer weights are widened to fp32, which is exact.
// A thread owns consecutive groups of 16 outputs, so it streams its weights once, in order, for every TOKENS tokens: those
// of several groups side by side, a panel, for memory gives one stream less than it has. Accumulation is fp32 in the
// order of K whatever the number of tokens.
#pragma once
#include <algorithm>
#include <vector>

#include "../cpu/simd.h"

namespace opt_trt {

// How many bytes ahead of what is read memory is asked for, in each of so many streams of `stride` bytes that lie behind
// one another: of the next panel where a stream ends, for a panel's beginning would be waited for.
inline int64_t bytes_ahead(int64_t at, int64_t stride, int64_t streams) {
  const int64_t ahead = stride < 8192 ? stride : 8192;
  return at + ahead < stride ? ahead : ahead + (streams - 1) * stride;
}

// Memory kept from call to call, as much as ever was asked for: fresh pages, or zeros, would cost as much as a product.
template <typename T>
T* at_least(std::vector<T>& kept, int64_t count) {
  if (int64_t(kept.size()) < count) kept.resize(count);
  return kept.data();
}

// So many that their activations stay in the second cache while all weights pass: a multiple of `rows`.
inline int64_t tokens_at_once(int64_t bytes_per_token, int64_t rows) {
  constexpr int64_t kCachedBytes = 1 << 19;  // half of it
  const int64_t fitting = kCachedBytes / bytes_per_token / rows * rows;
  return fitting > rows ? fitting : rows;
}

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

  // The same for some tokens from `first` on.
  Gemm part(int64_t first, int64_t most) const {
    Gemm some = *this;
    some.x += first * k;
    some.y += first * n;
    if (residual) some.residual += first * n;
    some.tokens = tokens - first < most ? tokens - first : most;
    return some;
  }
};

typedef void (*GemmKernel)(const Gemm&);

struct Span {
  int64_t first, count;
};

inline void finish_lanes(const Gemm& g, int64_t token, int64_t group, vec value) {
  const int64_t first = group * kLanes, at = token * g.n + first;
  const int64_t count = g.n - first < kLanes ? g.n - first : kLanes;
  const auto lanes = [&](const float* p) {
    if (count == kLanes) return load(p);
    vec some = {};
    std::memcpy(&some, p, count * sizeof(float));
    return some;
  };
  if (g.scale) value *= lanes(g.scale + first);
  if (g.bias) value += lanes(g.bias + first);
  if (g.relu) value = max(vec{}, value);  // this way round NaN stays, as in torch
  if (g.residual) value += lanes(g.residual + at);
  if (count == kLanes) store(g.y + at, value);
  else std::memcpy(g.y + at, &value, count * sizeof(float));
}

// Asks for a token's results and residuals: rows lie so far apart that the processor does not foresee the next one.
inline void fetch_results(const Gemm& g, int64_t token, Span groups) {
  for (int64_t j = 0; j < groups.count; ++j) {
    const int64_t at = token * g.n + (groups.first + j) * kLanes;
    __builtin_prefetch(g.y + at, 1);
    if (g.residual) __builtin_prefetch(g.residual + at);
  }
}

// From sums [tokens, groups] to results. Not inlined: copies of it in every tile were most of the compilation.
[[gnu::noinline]] inline void finish(const Gemm& g, Span tokens, Span groups, const vec* total) {
  constexpr int64_t kAhead = 8;
  for (int64_t i = 0; i < tokens.count; ++i) {
    if (i + kAhead < tokens.count) fetch_results(g, tokens.first + i + kAhead, groups);
    for (int64_t j = 0; j < groups.count; ++j) finish_lanes(g, tokens.first + i, groups.first + j, *total++);
  }
}

// Input features a stored row of 16 elements holds.
template <typename W> constexpr int kSteps = 1;
template <> constexpr int kSteps<int4x2> = 2;

// Stored rows of 16 outputs that `count` features take.
template <typename W>
constexpr int64_t stored_rows_of(int64_t count) { return (count + kSteps<W> - 1) / kSteps<W>; }

template <typename W>
void load_row(const W* p, int64_t ahead, vec (&values)[kSteps<W>]) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead, 0, kSecondLevel);
  if constexpr (kSteps<W> == 2) load_pairs(p, values);
  else values[0] = load(p);
}

template <typename W>
const W* weight_of(const Gemm& g, int64_t group) {
  return static_cast<const W*>(g.weight) + group * stored_rows_of<W>(g.k) * kLanes;
}

// One stored row of every group, of which the first STEPS input features count.
template <typename W, int STEPS, int TOKENS, int GROUPS>
inline void accumulate(const Gemm& g, const W* (&weight)[GROUPS], const float* x, int64_t row, vec (&total)[TOKENS][GROUPS]) {
  constexpr int64_t kBytes = kLanes * sizeof(W);
  const int64_t ahead = bytes_ahead(row * kBytes, stored_rows_of<W>(g.k) * kBytes, GROUPS);
  vec w[GROUPS][kSteps<W>];
  for (int j = 0; j < GROUPS; ++j) load_row(weight[j] + row * kLanes, ahead, w[j]);
  for (int s = 0; s < STEPS; ++s)
    for (int i = 0; i < TOKENS; ++i) {
      const vec value = splat(x[i * g.k + row * kSteps<W> + s]);
      for (int j = 0; j < GROUPS; ++j) total[i][j] += value * w[j][s];
    }
}

// TOKENS tokens × GROUPS groups of outputs, all accumulators in registers.
template <typename W, int TOKENS, int GROUPS>
void tile(const Gemm& g, int64_t token, int64_t group) {
  const W* weight[GROUPS];
  for (int j = 0; j < GROUPS; ++j) weight[j] = weight_of<W>(g, group + j);
  const float* x = g.x + token * g.k;
  const int64_t whole = g.k / kSteps<W>;
  vec total[TOKENS][GROUPS] = {};
  for (int64_t row = 0; row < whole; ++row) accumulate<W, kSteps<W>>(g, weight, x, row, total);
  if (g.k % kSteps<W>) accumulate<W, 1>(g, weight, x, whole, total);
  finish(g, {token, TOKENS}, {group, GROUPS}, total[0]);
}

// Tokens from `token` on of the groups [group, group + GROUPS), TOKENS at a time, the rest by smaller tiles.
template <typename W, int TOKENS, int GROUPS>
void panel(const Gemm& g, int64_t group, int64_t token = 0) {
  for (; token + TOKENS <= g.tokens; token += TOKENS) tile<W, TOKENS, GROUPS>(g, token, group);
  if constexpr (TOKENS > 1) panel<W, TOKENS / 2, GROUPS>(g, group, token);
}

template <typename W, int TOKENS, int GROUPS>
void multiply(const Gemm& g) {
  const int64_t groups = g.groups();
  const int64_t panels = groups / GROUPS;
#pragma omp parallel
  {
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < panels; ++p) panel<W, TOKENS, GROUPS>(g, p * GROUPS);
#pragma omp for schedule(static) nowait
    for (int64_t group = panels * GROUPS; group < groups; ++group) panel<W, TOKENS, 1>(g, group);
  }
}

template <typename W, int TOKENS, int GROUPS>
void gemm(const Gemm& g) {
  const int64_t most = tokens_at_once(g.k * sizeof(float), TOKENS);
  for (int64_t first = 0; first < g.tokens; first += most) multiply<W, TOKENS, GROUPS>(g.part(first, most));
}

// The kernel that multiplies WANTED tokens at once in fp32, or as many as registers hold sums of: six of AVX2, three of
// SSE2. A few groups of outputs go with them, of which each is a stream of memory.
template <typename W, int WANTED>
constexpr GemmKernel fp32_kernel() {
  constexpr int kTokens = std::min(WANTED, kSums / kParts), kStreams = kTokens == 1 ? 8 : 4;
  return gemm<W, kTokens, std::clamp(kSums / (kTokens * kParts), 1, kStreams)>;
}

}  // namespace opt_trt
