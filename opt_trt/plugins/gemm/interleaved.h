// y[T, N] = x[T, K] · W * scale + bias, ReLU, + residual, with W interleaved over 16 outputs: [N / 16, K, 16].
//
// A byte holds int4 of two neighbouring input features: [N / 16, ceil(K / 2), 16]. Integer weights are widened to fp32,
// which is exact. A thread owns consecutive groups of 16 outputs, so it reads its weights once, in order, for every
// TOKENS tokens. It reads several groups, a panel, at the same time, because one stream does not use all of the
// memory's bandwidth. Sums are fp32 and taken in the order of K, whatever the number of tokens.
#pragma once
#include <algorithm>
#include <vector>

#include "../cpu/simd.h"
#include "../cpu/threads.h"

namespace opt_trt {

// Return how many bytes ahead of the current read to prefetch. Each of the `streams` of a panel has `stride` bytes, and
// they follow one another in memory. At the end of a stream that is the next panel, whose beginning would cause a wait.
inline int64_t bytes_ahead(int64_t at, int64_t stride, int64_t streams) {
  const int64_t ahead = stride < 8192 ? stride : 8192;
  return at + ahead < stride ? ahead : ahead + (streams - 1) * stride;
}

// Return memory that is kept from call to call and only grows: new pages, or zeros, would cost as much as a product.
template <typename T>
T* at_least(std::vector<T>& kept, int64_t count) {
  if (int64_t(kept.size()) < count) kept.resize(count);
  return kept.data();
}

// Return how many tokens to multiply in one pass over the weights, a multiple of `tile`: their activations stay in the
// second-level cache.
inline int64_t tokens_of_pass(int64_t bytes_per_token, int64_t tile) {
  constexpr int64_t kCachedBytes = 1 << 19;  // half of that cache
  return std::max(kCachedBytes / bytes_per_token / tile * tile, tile);
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

  // Return the product of at most `most` tokens from `first` on.
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
  if (g.relu) value = max(vec{}, value);  // in this order, NaN stays NaN, as in torch
  if (g.residual) value += lanes(g.residual + at);
  if (count == kLanes) store(g.y + at, value);
  else std::memcpy(g.y + at, &value, count * sizeof(float));
}

// Prefetch a token's results and residuals: rows are so far apart that the processor's prefetcher does not find them.
inline void fetch_results(const Gemm& g, int64_t token, Span groups) {
  for (int64_t j = 0; j < groups.count; ++j) {
    const int64_t at = token * g.n + (groups.first + j) * kLanes;
    __builtin_prefetch(g.y + at, 1);
    if (g.residual) __builtin_prefetch(g.residual + at);
  }
}

// Turn sums [tokens, groups] into results. Not inlined, because copies in every tile took most of the compilation.
[[gnu::noinline]] inline void finish(const Gemm& g, Span tokens, Span groups, const vec* total) {
  constexpr int64_t kAhead = 8;
  for (int64_t i = 0; i < tokens.count; ++i) {
    if (i + kAhead < tokens.count) fetch_results(g, tokens.first + i + kAhead, groups);
    for (int64_t j = 0; j < groups.count; ++j) finish_lanes(g, tokens.first + i, groups.first + j, *total++);
  }
}

// Input features in a stored row of 16 elements.
template <typename W> constexpr int kSteps = 1;
template <> constexpr int kSteps<int4x2> = 2;

// Return the number of stored rows of 16 outputs for `count` features.
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

// Add the products of one stored row of every group, with its first STEPS input features.
template <typename W, int STEPS, int TOKENS, int GROUPS>
inline void accumulate(
    const Gemm& g, const W* (&weight)[GROUPS], const float* x, int64_t row, vec (&total)[TOKENS][GROUPS]) {
  constexpr int64_t kBytes = kLanes * sizeof(W);
  const int64_t ahead = bytes_ahead(row * kBytes, stored_rows_of<W>(g.k) * kBytes, GROUPS);
  vec w[GROUPS][kSteps<W>];
  for (int j = 0; j < GROUPS; ++j) load_row(weight[j] + row * kLanes, ahead, w[j]);
  for (int s = 0; s < STEPS; ++s)
    for (int i = 0; i < TOKENS; ++i) {
      const vec value = splat(x[i * g.k + row * kSteps<W> + s]);
      for (int j = 0; j < GROUPS; ++j) add_product(total[i][j], value, w[j][s]);
    }
}

// Compute TOKENS tokens × GROUPS groups of outputs, with all sums in registers.
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

// Compute groups [group, group + GROUPS) of all tokens from `token` on, by tiles of TOKENS and then by smaller ones.
template <typename W, int TOKENS, int GROUPS>
void panel(const Gemm& g, int64_t group, int64_t token = 0) {
  for (; token + TOKENS <= g.tokens; token += TOKENS) tile<W, TOKENS, GROUPS>(g, token, group);
  if constexpr (TOKENS > 1) panel<W, TOKENS / 2, GROUPS>(g, group, token);
}

// Call `whole` for the first group of every panel, and `single` for each group that is left over.
template <int GROUPS, typename Whole, typename Single>
void for_each_panel(int64_t groups, const Whole& whole, const Single& single) {
  const int64_t panels = groups / GROUPS, rest = panels * GROUPS;
  for_each(panels + groups - rest, [&](int64_t i) {
    if (i < panels) whole(i * GROUPS);
    else single(rest + i - panels);
  });
}

template <typename W, int TOKENS, int GROUPS>
void multiply(const Gemm& g) {
  for_each_panel<GROUPS>(
      g.groups(), [&](int64_t group) { panel<W, TOKENS, GROUPS>(g, group); },
      [&](int64_t group) { panel<W, TOKENS, 1>(g, group); });
}

template <typename W, int TOKENS, int GROUPS>
void gemm(const Gemm& g) {
  const int64_t most = tokens_of_pass(g.k * sizeof(float), TOKENS);
  for (int64_t first = 0; first < g.tokens; first += most) multiply<W, TOKENS, GROUPS>(g.part(first, most));
}

// Return the kernel that multiplies WANTED tokens at once in fp32, or fewer if registers hold the sums of fewer: six
// with AVX2, three with SSE2. It computes a few groups of outputs at once, each of which is a stream of memory.
template <typename W, int WANTED>
constexpr GemmKernel fp32_kernel() {
  constexpr int kTokens = std::min(WANTED, kSums / kParts), kStreams = kTokens == 1 ? 8 : 4;
  return gemm<W, kTokens, std::clamp(kSums / (kTokens * kParts), 1, kStreams)>;
}

}  // namespace opt_trt
