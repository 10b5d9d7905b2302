// The form of pairs of 16-bit integers, at twice the rate of fp32. Activations and fp16 weights are in fixed point, and
// 128 neighbouring features share a scale.
//
// Weights take 15 bits and their scale is a power of two, so weights down to an eighth of the largest binade are exact.
// The four products that two instructions add to a lane just fit into 32 bits. Then sums are converted to fp32.
#pragma once
#include <type_traits>

#include "blocks.h"

namespace opt_trt {

#if defined(__AVX512F__)

// Convert one block of 16 outputs; return its scales.
inline vec words_of(const fp16* block, pair* out, int64_t stride) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);  // absolute values have the order of their bits
  __m512i largest = _mm512_setzero_si512();
  for (int64_t p = 0; p < kBlockPairs; ++p)
    largest = _mm512_max_epu16(largest, _mm512_and_si512(_mm512_loadu_si512(block + 2 * p * kLanes), magnitude));
  const __m256i both = _mm256_max_epu16(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  const __m512i binade = _mm512_and_si512(_mm512_castps_si512(_mm512_cvtph_ps(both)), exponent);
  const vec scale = (vec)binade * 0x1p-13f;  // fp16's 11 bits end 2^10 below the binade: three more fit
  const __m512 inverse = (__m512)(scale > vec{} ? 1.0f / scale : vec{});
  for (int64_t p = 0; p < kBlockPairs; ++p) {
    vec two[2];
    load_two(block, p, two);
    const __m512i earlier = _mm512_cvtps_epi32((__m512)two[0] * inverse);
    const __m512i later = _mm512_slli_epi32(_mm512_cvtps_epi32((__m512)two[1] * inverse), 16);
    _mm512_storeu_si512(out + p * stride, _mm512_mask_blend_epi16(0xaaaaaaaa, earlier, later));
  }
  return scale;
}

struct Words {
  static void round(const float* x, int64_t count, const TokenPairs& out) {
    __m512i values[kGroup / kLanes];
    *out.scales = to_integers(x, count, 32767, values);
    for (int i = 0; i < kGroup / kLanes; ++i)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.pairs) + i, _mm512_cvtepi32_epi16(values[i]));
  }

  template <typename W>
  static vec widen(const W* block, pair* out, int64_t stride) { return words_of(block, out, stride); }

  template <int TOKENS, int GROUPS>
  [[gnu::noinline, gnu::target("avx512vnni")]] static void add(
      const TokenPairs& x, const WeightPairs<GROUPS>& w, vec (*total)[GROUPS]) {
    constexpr int64_t kFitting = 2;  // instructions whose sum fits into a lane: 4 * 32767 * 16383 < 2^31
    vec part[TOKENS][GROUPS] = {};
    for (int64_t p = 0; p < kBlockPairs; p += kFitting) {
      ivec sum[TOKENS][GROUPS] = {};
      for (int64_t q = p; q < p + kFitting; ++q)
        for (int i = 0; i < TOKENS; ++i) {
          const __m512i value = _mm512_set1_epi32(int32_t(x.pairs[i * kBlockPairs + q]));
          for (int j = 0; j < GROUPS; ++j)
            sum[i][j] = (ivec)_mm512_dpwssd_epi32((__m512i)sum[i][j], _mm512_load_si512(w.pairs[q][j]), value);
        }
      for (int i = 0; i < TOKENS; ++i)
        for (int j = 0; j < GROUPS; ++j) part[i][j] += __builtin_convertvector(sum[i][j], vec);
    }
    for (int i = 0; i < TOKENS; ++i)
      for (int j = 0; j < GROUPS; ++j) total[i][j] += part[i][j] * w.scales[j] * x.scales[i];
  }
};
#endif

// Return the kernel of TOKENS tokens at once, or null if the library has none.
template <typename W, int TOKENS, int GROUPS>
constexpr GemmKernel words_kernel() {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<W, fp16>) return gemm_blocks<Words, W, TOKENS, GROUPS>;
#endif
  return nullptr;
}

}  // namespace opt_trt
