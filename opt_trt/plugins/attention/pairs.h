// The form of fused attention whose instructions multiply pairs of bf16. It rounds queries and weights; sums are fp32.
#pragma once
#include <type_traits>

#include "flash.h"

namespace opt_trt {

#if defined(__AVX512F__)
struct Pairs {
  static constexpr int64_t kNumbers = 2;  // of an item, the earlier in the low bits

  static void pack(vec numbers, float* items) { store(reinterpret_cast<bf16*>(items), numbers); }

  static float item(const bf16* numbers) { return read<float>(numbers); }

  static vec items(const bf16* numbers) { return read<vec>(numbers); }

  // Write a value [D] to half of row `at / 2` of items. The earlier half sets the later one to zero.
  static void widen_value(const bf16* value, int64_t size, int64_t at, float* items) {
    for (int64_t d = 0; d < size; d += kLanes) {
      float* to = items + at / 2 * size + d;
      const uvec half = load_u16(value + d);
      const uvec both = at % 2 ? (uvec)load(to) | half << 16 : half;
      store(to, (vec)both);
    }
  }

  template <int QUERIES, int GROUPS>
  [[gnu::noinline, gnu::target("avx512bf16")]] static void multiply(const Factors& f, vec (&result)[QUERIES][GROUPS]) {
    __m512 sum[QUERIES][GROUPS] = {};
    for (int64_t p = 0; p < f.n; ++p) {
      __m512bh right[GROUPS];
      for (int j = 0; j < GROUPS; ++j)
        right[j] = (__m512bh)_mm512_loadu_ps(f.right + p * f.right_stride + j * kLanes);
      for (int i = 0; i < QUERIES; ++i) {
        const __m512bh left = (__m512bh)_mm512_set1_ps(f.left[i * f.left_stride + p]);
        for (int j = 0; j < GROUPS; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
      }
    }
    for (int i = 0; i < QUERIES; ++i)
      for (int j = 0; j < GROUPS; ++j) result[i][j] = (vec)sum[i][j];
  }
};
#endif

// Return the kernel for a cache of C, or null if the library has none.
template <typename C>
constexpr AttentionKernel flash_pairs_kernel() {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<C, bf16>) return attend_flash<Pairs, C>;
#endif
  return nullptr;
}

}  // namespace opt_trt
