// The same product in fixed point: activations of 128 neighbouring features share a scale, each is one or two bytes.
//
// Instructions that multiply bytes do four times the work of fp32 and need no weight widened. Bytes of weights have no
// sign, 8 or 128 is added to each; what that adds to a sum is known from the activations alone and taken off before.
// Sums of a group are exact; groups are added in fp32 in the order of K, whatever the number of tokens.
#pragma once
#include "integers.h"

namespace opt_trt {

constexpr int64_t kQuad = 4;  // bytes one instruction multiplies and adds in a lane

template <typename W> constexpr int kOffset = 0;  // what is added to a stored weight
template <> constexpr int kOffset<int8_t> = 128;
template <> constexpr int kOffset<int4x2> = 8;
template <typename W> constexpr bool kIntegers = kOffset<W> != 0;
template <typename W> constexpr int kQuads = kSteps<W>;  // quads of features in a stored row: 64 bytes, 16 outputs

// Stored rows of 16 outputs that `count` features take.
template <typename W>
constexpr int64_t quad_rows_of(int64_t count) { return num_groups(count) * kGroup / (kQuad * kQuads<W>); }

// Activations of all tokens, PARTS bytes each, the more significant first. Tokens of a tile lie together: [groups of K,
// tokens of the tile], tile after tile. Were it all tokens instead, lines a power of two apart would evict one another.
struct FixedPoint {
  int8_t* parts;    // [..., PARTS, 128]
  float* scales;    // [...]
  int32_t* totals;  // [...]: sums of the group's values
};

// The tile that a token belongs to: tiles of `most` rows as long as there are tokens, then of half as many, and so on.
inline Span tile_of(int64_t token, int64_t tokens, int64_t most) {
  int64_t first = 0, whole = tokens / most * most;
  while (token >= first + whole) {
    first += whole;
    most /= 2;
    whole = (tokens - first) / most * most;
  }
  return {token - (token - first) % most, most};
}

// For so many groups of a token.
inline FixedPoint kept_activations(int64_t groups, int64_t parts) {
  static thread_local std::vector<int8_t> kept;
  static thread_local std::vector<float> scales;
  static thread_local std::vector<int32_t> totals;
  return {at_least(kept, groups * parts * kGroup), at_least(scales, groups), at_least(totals, groups)};
}

#if defined(__AVX512F__)
#define OPT_TRT_VNNI [[gnu::target("avx512vnni")]]

template <int PARTS> constexpr float kLargest = PARTS == 2 ? 127 * 256 + 127 : 127;

// One group of one token.
template <int PARTS>
OPT_TRT_VNNI void round_group(const float* x, int64_t count, int8_t* parts, float* scale, int32_t* total) {
  __m512i values[kGroup / kLanes];
  *scale = to_integers(x, count, kLargest<PARTS>, values);
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < kGroup / kLanes; ++i) {
    sum = _mm512_add_epi32(sum, values[i]);
    if constexpr (PARTS == 2) {
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(values[i], _mm512_set1_epi32(128)), 8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(parts + i * kLanes), _mm512_cvtepi32_epi8(high));
    }
    // The lowest byte, read with a sign, is what the high part leaves.
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(parts + (PARTS - 1) * kGroup + i * kLanes), _mm512_cvtepi32_epi8(values[i]));
  }
  *total = _mm512_reduce_add_epi32(sum);
}

// A row of weights as quads of bytes without sign.
template <typename W>
OPT_TRT_VNNI inline void load_quads(const uint8_t* p, __m512i (&quads)[kQuads<W>]) {
  quads[0] = _mm512_loadu_si512(p);
  if constexpr (kQuads<W> == 2) {
    const __m512i low = _mm512_set1_epi8(15);
    quads[1] = _mm512_and_si512(_mm512_srli_epi16(quads[0], 4), low);
    quads[0] = _mm512_and_si512(quads[0], low);
  }
}

// Weights of one group of features: those of neighbouring groups of 16 outputs are `stride` bytes apart; what lies
// `ahead` bytes further is asked for.
struct Quads {
  const uint8_t* weight;
  int64_t stride, ahead;
};

// Adds the products of one group of features, TOKENS tokens × GROUPS groups of 16 outputs. Not inlined: it needs all
// registers for its sums.
template <typename W, int PARTS, int TOKENS, int GROUPS>
[[gnu::noinline]] OPT_TRT_VNNI void add_group(
    const FixedPoint& x, int64_t first, const Quads& w, vec (&total)[TOKENS][GROUPS]) {
  const int8_t* parts = x.parts + first * PARTS * kGroup;
  const uint8_t* weight = w.weight;
  const int64_t stride = w.stride, ahead = w.ahead;
  ivec sum[TOKENS * PARTS][GROUPS] = {};  // GCC 12 writes an array of __m512i to memory at every addition
  for (int i = 0; i < TOKENS; ++i)
    for (int j = 0; j < GROUPS; ++j) sum[i * PARTS + PARTS - 1][j] = ivec{} - kOffset<W> * x.totals[first + i];
  for (int64_t k = 0; k < kGroup; k += kQuad * kQuads<W>, weight += 64) {
    __m512i quads[GROUPS][kQuads<W>];
    for (int j = 0; j < GROUPS; ++j) {
      __builtin_prefetch(weight + j * stride + ahead, 0, kSecondLevel);
      load_quads<W>(weight + j * stride, quads[j]);
    }
    for (int q = 0; q < kQuads<W>; ++q)
      for (int i = 0; i < TOKENS * PARTS; ++i) {
        int32_t four;
        std::memcpy(&four, parts + i * kGroup + k + q * kQuad, sizeof(four));
        const __m512i value = _mm512_set1_epi32(four);
        for (int j = 0; j < GROUPS; ++j)
          sum[i][j] = (ivec)_mm512_dpbusd_epi32((__m512i)sum[i][j], quads[j][q], value);
      }
  }
  for (int i = 0; i < TOKENS; ++i)
    for (int j = 0; j < GROUPS; ++j) {
      ivec whole = sum[i * PARTS + PARTS - 1][j];
      if constexpr (PARTS == 2) whole += sum[i * PARTS][j] << 8;
      total[i][j] += __builtin_convertvector(whole, vec) * x.scales[first + i];
    }
}

// Tokens from `token` on, TOKENS of them. While several tiles read a panel of weights, each asks for a part of the next
// panel, so that memory is never idle.
template <typename W, int PARTS, int TOKENS, int GROUPS>
OPT_TRT_VNNI void fixed_tile(const Gemm& g, const FixedPoint& x, int64_t token, int64_t group) {
  constexpr int64_t kBytes = kGroup * kLanes / kSteps<W>;
  const int64_t k_groups = num_groups(g.k), stride = k_groups * kBytes;
  const int64_t tiles = (g.tokens + TOKENS - 1) / TOKENS, tile = token / TOKENS;
  const uint8_t* weight = static_cast<const uint8_t*>(g.weight) + group * stride;
  vec total[TOKENS][GROUPS] = {};
  for (int64_t at = 0; at < k_groups; ++at) {
    const int64_t next = at % tiles == tile ? GROUPS * stride : 0;
    const int64_t ahead = tiles == 1 ? bytes_ahead(at * kBytes, stride, GROUPS) : next;
    add_group<W, PARTS, TOKENS, GROUPS>(x, token * k_groups + at * TOKENS, {weight + at * kBytes, stride, ahead}, total);
  }
  finish(g, {token, TOKENS}, {group, GROUPS}, total[0]);
}

// All tokens from `token` on, TOKENS at a time, the rest by smaller tiles.
template <typename W, int PARTS, int TOKENS, int GROUPS>
void fixed_panel(const Gemm& g, const FixedPoint& x, int64_t group, int64_t token = 0) {
  for (; token + TOKENS <= g.tokens; token += TOKENS) fixed_tile<W, PARTS, TOKENS, GROUPS>(g, x, token, group);
  if constexpr (TOKENS > 1) fixed_panel<W, PARTS, TOKENS / 2, GROUPS>(g, x, group, token);
}

template <typename W, int PARTS, int TOKENS, int GROUPS>
void multiply_fixed(const Gemm& g) {
  const int64_t groups = g.groups(), panels = groups / GROUPS, k_groups = num_groups(g.k), rounded = k_groups * g.tokens;
  const FixedPoint x = kept_activations(rounded, PARTS);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rounded; ++i) {
      const int64_t token = i / k_groups, group = i % k_groups, k = group * kGroup;
      const Span tile = tile_of(token, g.tokens, TOKENS);
      const int64_t at = tile.first * k_groups + group * tile.count + token - tile.first;
      round_group<PARTS>(g.x + token * g.k + k, g.k - k, x.parts + at * PARTS * kGroup, x.scales + at, x.totals + at);
    }
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < panels; ++p) fixed_panel<W, PARTS, TOKENS, GROUPS>(g, x, p * GROUPS);
#pragma omp for schedule(static) nowait
    for (int64_t group = panels * GROUPS; group < groups; ++group) fixed_panel<W, PARTS, TOKENS, 1>(g, x, group);
  }
}

template <typename W, int PARTS, int TOKENS, int GROUPS>
void gemm_fixed(const Gemm& g) {
  const int64_t most = tokens_at_once(g.k * PARTS, TOKENS);
  for (int64_t first = 0; first < g.tokens; first += most) multiply_fixed<W, PARTS, TOKENS, GROUPS>(g.part(first, most));
}
#endif

// The kernel of TOKENS tokens at once whose activations have PARTS bytes; null where the library has none.
template <typename W, int PARTS, int TOKENS, int GROUPS>
constexpr GemmKernel fixed_kernel() {
#if defined(__AVX512F__)
  if constexpr (kIntegers<W>) return gemm_fixed<W, PARTS, TOKENS, GROUPS>;
#endif
  return nullptr;
}

}  // namespace opt_trt
