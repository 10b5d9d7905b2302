// The same product by instructions that multiply pairs of bf16 values and add to fp32: activations are rounded to bf16.
//
// Twice the rate of fp32. A panel of weights is widened once, to pairs of neighbouring input features, for all tokens.
#pragma once
#include "interleaved.h"

namespace opt_trt {

typedef uint32_t pair;  // two bf16, the earlier feature in the low bits

template <typename W> constexpr bool kRounds = false;  // bf16 does not hold a stored weight's values
template <> constexpr bool kRounds<fp16> = true;

constexpr int64_t num_pairs(int64_t k) { return (k + 1) / 2; }

inline uvec bits_of(vec v) {
  uvec bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

inline vec round_to_bf16(vec v) {
  const uvec bits = bits_of(v), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  std::memcpy(&v, &rounded, sizeof(v));
  return v;
}

inline void store_pairs(pair* p, vec earlier, vec later) {
  const uvec pairs = (bits_of(earlier) >> 16) | (bits_of(later) & 0xffff0000u);
  std::memcpy(p, &pairs, sizeof(pairs));
}

// A group of 16 outputs [K, 16] to [K / 2, 16].
template <typename W>
void widen_group(const Gemm& g, int64_t group, pair* out) {
  const W* weight = weight_of<W>(g, group);
  for (int64_t p = 0; p < num_pairs(g.k); ++p, out += kLanes) {
    vec values[2] = {};
    if constexpr (kSteps<W> == 2) load_pairs(weight + p * kLanes, values);
    else {
      values[0] = load(weight + 2 * p * kLanes);
      if (2 * p + 1 < g.k) values[1] = load(weight + (2 * p + 1) * kLanes);
    }
    if constexpr (kRounds<W>)
      for (vec& value : values) value = round_to_bf16(value);
    store_pairs(out, values[0], values[1]);
  }
}

// A token [K] to [K / 2], rounded to nearest, ties to even.
inline void round_token(const float* x, int64_t k, pair* out) {
  for (int64_t p = 0; p < num_pairs(k); ++p) {
    bf16 two[2] = {};
    store_one(&two[0], x[2 * p]);
    if (2 * p + 1 < k) store_one(&two[1], x[2 * p + 1]);
    std::memcpy(out + p, two, sizeof(two));
  }
}

#if defined(__AVX512F__)
// ROWS tokens [K / 2] × GROUPS groups of outputs [GROUPS, K / 2, 16].
template <int ROWS, int GROUPS>
[[gnu::target("avx512bf16")]] void pair_tile(const Gemm& g, const pair* x, const pair* w, int64_t token, int64_t group) {
  const int64_t pairs = num_pairs(g.k);
  __m512 total[ROWS][GROUPS];
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < GROUPS; ++j) total[i][j] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    __m512bh weight[GROUPS];
    for (int j = 0; j < GROUPS; ++j) weight[j] = (__m512bh)_mm512_loadu_si512(w + (j * pairs + p) * kLanes);
    for (int i = 0; i < ROWS; ++i) {
      const __m512bh value = (__m512bh)_mm512_set1_epi32(int32_t(x[(token + i) * pairs + p]));
      for (int j = 0; j < GROUPS; ++j) total[i][j] = _mm512_dpbf16_ps(total[i][j], value, weight[j]);
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < GROUPS; ++j) {
      vec sum;
      std::memcpy(&sum, &total[i][j], sizeof(sum));
      finish(g, token + i, group + j, sum);
    }
}

template <typename W, int ROWS, int GROUPS>
void pair_panel(const Gemm& g, const pair* x, int64_t group, pair* w) {
  for (int64_t j = 0; j < GROUPS; ++j) widen_group<W>(g, group + j, w + j * num_pairs(g.k) * kLanes);
  int64_t token = 0;
  for (; token + ROWS <= g.tokens; token += ROWS) pair_tile<ROWS, GROUPS>(g, x, w, token, group);
  for (; token < g.tokens; ++token) pair_tile<1, GROUPS>(g, x, w, token, group);
}

inline pair* kept_activations(int64_t count) {
  static thread_local std::vector<pair> kept;
  return at_least(kept, count);
}

inline pair* kept_panel(int64_t count) {
  static thread_local std::vector<pair> kept;
  return at_least(kept, count);
}

template <typename W, int ROWS, int GROUPS>
void gemm_pairs(const Gemm& g) {
  const int64_t pairs = num_pairs(g.k), groups = g.groups(), panels = groups / GROUPS;
  pair* x = kept_activations(g.tokens * pairs);
#pragma omp parallel
  {
    pair* w = kept_panel(GROUPS * pairs * kLanes);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < g.tokens; ++t) round_token(g.x + t * g.k, g.k, x + t * pairs);
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < panels; ++p) pair_panel<W, ROWS, GROUPS>(g, x, p * GROUPS, w);
#pragma omp for schedule(static) nowait
    for (int64_t group = panels * GROUPS; group < groups; ++group) pair_panel<W, ROWS, 1>(g, x, group, w);
  }
}
#endif

}  // namespace opt_trt
