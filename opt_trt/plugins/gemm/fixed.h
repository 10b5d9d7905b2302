// The product of interleaved.h in fixed point: activations have one or two bytes, and 128 neighbours share a scale.
//
// Instructions that multiply bytes do four times the work of fp32 and do not need widened weights. They take weights
// without sign, so 8 or 128 is added to each weight. What that adds to a sum depends only on the activations, and the
// sum begins with its negative. Sums of a group are exact. Groups are added in fp32 in the order of K, whatever the
// number of tokens.
#pragma once
#include "integers.h"

namespace opt_trt {

constexpr int64_t kQuad = 4;  // bytes that one instruction multiplies and adds in a lane

template <typename W> constexpr int kOffset = 0;  // the number that is added to a stored weight
template <> constexpr int kOffset<int8_t> = 128;
template <> constexpr int kOffset<int4x2> = 8;
template <typename W> constexpr bool kIntegers = kOffset<W> != 0;
template <typename W> constexpr int kQuads = kSteps<W>;  // quads of features in a stored row: 64 bytes, 16 outputs

// Return the number of stored rows of 16 outputs for `count` features.
template <typename W>
constexpr int64_t quad_rows_of(int64_t count) { return num_groups(count) * kGroup / (kQuad * kQuads<W>); }

// Activations of all tokens in PARTS bytes, the more significant byte first. The layout is [groups of K, tokens of the
// tile], tile after tile. With [groups of K, all tokens], lines a power of two apart would evict one another.
struct FixedPoint {
  int8_t* parts;    // [..., PARTS, 128]
  float* scales;    // [...]
  int32_t* totals;  // [...]: sums of the group's values
};

// Return the tile of a token: tiles have `most` tokens while enough are left, then half as many, and so on.
inline Span tile_of(int64_t token, int64_t tokens, int64_t most) {
  int64_t first = 0, whole = tokens / most * most;
  while (token >= first + whole) {
    first += whole;
    most /= 2;
    whole = (tokens - first) / most * most;
  }
  return {token - (token - first) % most, most};
}

// Return memory for `groups` groups of tokens, which is kept from call to call.
inline FixedPoint kept_activations(int64_t groups, int64_t parts) {
  static thread_local std::vector<int8_t> kept;
  static thread_local std::vector<float> scales;
  static thread_local std::vector<int32_t> totals;
  return {at_least(kept, groups * parts * kGroup), at_least(scales, groups), at_least(totals, groups)};
}

#if defined(__AVX512F__)
#define OPT_TRT_VNNI [[gnu::target("avx512vnni")]]

template <int PARTS> constexpr float kLargest = PARTS == 2 ? 127 * 256 + 127 : 127;

// Round one group of one token.
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
    // The lowest byte, read as a signed number, is what remains of the value without the high part.
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(parts + (PARTS - 1) * kGroup + i * kLanes), _mm512_cvtepi32_epi8(values[i]));
  }
  *total = _mm512_reduce_add_epi32(sum);
}

// Load a row of weights as quads of unsigned bytes.
template <typename W>
OPT_TRT_VNNI inline void load_quads(const uint8_t* p, __m512i (&quads)[kQuads<W>]) {
  quads[0] = _mm512_loadu_si512(p);
  if constexpr (kQuads<W> == 2) {
    const __m512i low = _mm512_set1_epi8(15);
    quads[1] = _mm512_and_si512(_mm512_srli_epi16(quads[0], 4), low);
    quads[0] = _mm512_and_si512(quads[0], low);
  }
}

// Weights of one group of features. Those of neighbouring groups of 16 outputs are `stride` bytes apart. Weights
// `ahead` bytes further are prefetched.
struct Quads {
  const uint8_t* weight;
  int64_t stride, ahead;
};

// Add the products of one group of features, for TOKENS tokens × GROUPS groups of 16 outputs. Not inlined, because its
// sums need all registers.
template <typename W, int PARTS, int TOKENS, int GROUPS>
[[gnu::noinline]] OPT_TRT_VNNI void add_group(
    const FixedPoint& x, int64_t first, const Quads& w, vec (&total)[TOKENS][GROUPS]) {
  const int8_t* parts = x.parts + first * PARTS * kGroup;
  const uint8_t* weight = w.weight;
  const int64_t stride = w.stride, ahead = w.ahead;
  ivec sum[TOKENS * PARTS][GROUPS] = {};  // GCC 12 would write an array of __m512i to memory at every addition
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

// Compute a tile of TOKENS tokens from `token` on. If several tiles read a panel of weights, each prefetches a part of
// the next panel, so that memory is never idle.
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
    const Quads quads{weight + at * kBytes, stride, ahead};
    add_group<W, PARTS, TOKENS, GROUPS>(x, token * k_groups + at * TOKENS, quads, total);
  }
  finish(g, {token, TOKENS}, {group, GROUPS}, total[0]);
}

// Compute a panel for all tokens from `token` on, by tiles of TOKENS and then by smaller ones.
template <typename W, int PARTS, int TOKENS, int GROUPS>
void fixed_panel(const Gemm& g, const FixedPoint& x, int64_t group, int64_t token = 0) {
  for (; token + TOKENS <= g.tokens; token += TOKENS) fixed_tile<W, PARTS, TOKENS, GROUPS>(g, x, token, group);
  if constexpr (TOKENS > 1) fixed_panel<W, PARTS, TOKENS / 2, GROUPS>(g, x, group, token);
}

template <typename W, int PARTS, int TOKENS, int GROUPS>
void multiply_fixed(const Gemm& g) {
  const int64_t k_groups = num_groups(g.k), rounded = k_groups * g.tokens;
  const FixedPoint x = kept_activations(rounded, PARTS);
  for_each(rounded, kRoundedAtOnce, [&](int64_t i) {
    const int64_t token = i / k_groups, group = i % k_groups, k = group * kGroup;
    const Span tile = tile_of(token, g.tokens, TOKENS);
    const int64_t at = tile.first * k_groups + group * tile.count + token - tile.first;
    round_group<PARTS>(g.x + token * g.k + k, g.k - k, x.parts + at * PARTS * kGroup, x.scales + at, x.totals + at);
  });
  for_each_panel<GROUPS>(
      g.groups(), [&](int64_t group) { fixed_panel<W, PARTS, TOKENS, GROUPS>(g, x, group); },
      [&](int64_t group) { fixed_panel<W, PARTS, TOKENS, 1>(g, x, group); });
}

template <typename W, int PARTS, int TOKENS, int GROUPS>
void gemm_fixed(const Gemm& g) {
  const int64_t most = tokens_of_pass(g.k * PARTS, TOKENS);
  for (int64_t first = 0; first < g.tokens; first += most)
    multiply_fixed<W, PARTS, TOKENS, GROUPS>(g.part(first, most));
}
#endif

// Return the kernel of TOKENS tokens at once with activations of PARTS bytes, or null if the library has none.
template <typename W, int PARTS, int TOKENS, int GROUPS>
constexpr GemmKernel fixed_kernel() {
#if defined(__AVX512F__)
  if constexpr (kIntegers<W>) return gemm_fixed<W, PARTS, TOKENS, GROUPS>;
#endif
  return nullptr;
}

}  // namespace opt_trt
