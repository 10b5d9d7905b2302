// The form of pairs of bf16, at twice the rate of fp32. Activations are rounded; bf16 holds the weights exactly.
#pragma once
#include <type_traits>

#include "blocks.h"

namespace opt_trt {

#if defined(__AVX512F__)
struct Bf16 {
  static void round(const float* x, int64_t count, const TokenPairs& out) {
    bf16* rounded = reinterpret_cast<bf16*>(out.pairs);
    for (int64_t i = 0; i < kBlock / kLanes; ++i) store(rounded + i * kLanes, (vec)lanes_of(x, count, i));
  }

  template <typename W>
  static vec widen(const W* block, pair* out, int64_t stride) {
    for (int64_t p = 0; p < kBlockPairs; ++p) {
      vec two[2];
      load_two(block, p, two);
      const uvec both = ((uvec)two[0] >> 16) | ((uvec)two[1] & 0xffff0000u);
      std::memcpy(out + p * stride, &both, sizeof(both));
    }
    return vec{};
  }

  template <int TOKENS, int GROUPS>
  [[gnu::noinline, gnu::target("avx512bf16")]] static void add(
      const TokenPairs& x, const WeightPairs<GROUPS>& w, vec (*total)[GROUPS]) {
    __m512 sum[TOKENS][GROUPS];
    for (int i = 0; i < TOKENS; ++i)
      for (int j = 0; j < GROUPS; ++j) sum[i][j] = (__m512)total[i][j];
    for (int64_t p = 0; p < kBlockPairs; ++p) {
      for (int i = 0; i < TOKENS; ++i) {
        const __m512bh value = (__m512bh)_mm512_set1_epi32(int32_t(x.pairs[i * kBlockPairs + p]));
        for (int j = 0; j < GROUPS; ++j)
          sum[i][j] = _mm512_dpbf16_ps(sum[i][j], value, (__m512bh)_mm512_load_si512(w.pairs[p][j]));
      }
    }
    for (int i = 0; i < TOKENS; ++i)
      for (int j = 0; j < GROUPS; ++j) total[i][j] = (vec)sum[i][j];
  }
};
#endif

// Return the kernel of TOKENS tokens at once, or null if the library has none. bf16 does not hold weights of fp16.
template <typename W, int TOKENS, int GROUPS>
constexpr GemmKernel pairs_kernel() {
#if defined(__AVX512F__)
  if constexpr (!std::is_same_v<W, float> && !std::is_same_v<W, fp16>) return gemm_blocks<Bf16, W, TOKENS, GROUPS>;
#endif
  return nullptr;
}

}  // namespace opt_trt
