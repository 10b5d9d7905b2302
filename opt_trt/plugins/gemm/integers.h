// Activations as integers, of which 128 neighbouring features share a scale.
#pragma once
#include "interleaved.h"

namespace opt_trt {

constexpr int64_t kGroup = 128;  // features that share a scale
constexpr int64_t kRoundedAtOnce = 64;  // groups of activations: a microsecond of work

constexpr int64_t num_groups(int64_t k) { return (k + kGroup - 1) / kGroup; }

#if defined(__AVX512F__)
// Load the i-th sixteen of `count` values, with zeros beyond.
inline __m512 lanes_of(const float* x, int64_t count, int64_t i) {
  const int64_t left = count - i * kLanes;
  const __mmask16 mask = left >= kLanes ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
  return _mm512_maskz_loadu_ps(mask, x + i * kLanes);
}

// Round one group of one token, with zeros beyond `count`: the largest value becomes `most`. Return the scale. A value
// of infinity or NaN makes every result non-finite. Values too small for a normal scale (1e-33 and less) become zero.
inline float to_integers(const float* x, int64_t count, float most, __m512i (&integers)[kGroup / kLanes]) {
  __m512 values[kGroup / kLanes];
  __m512i largest = _mm512_setzero_si512();  // absolute values have the order of their bits
  for (int i = 0; i < kGroup / kLanes; ++i) {
    values[i] = lanes_of(x, count, i);
    largest = _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(values[i])));
  }
  const int32_t bits = _mm512_reduce_max_epi32(largest);
  float scale;
  std::memcpy(&scale, &bits, sizeof(bits));
  scale /= most;
  const __m512 inverse = _mm512_set1_ps(scale >= 0x1p-126f && scale < INFINITY ? 1.0f / scale : 0.0f);
  for (int i = 0; i < kGroup / kLanes; ++i) integers[i] = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
  return scale;
}
#endif

}  // namespace opt_trt
