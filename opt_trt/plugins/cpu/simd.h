// Sixteen fp32 lanes: loads that widen stored weights, stores that round, and operations across lanes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace opt_trt {

constexpr int kSecondLevel = 2;  // prefetch hint: the first-level cache is too small for all that is prefetched

struct fp16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
struct int4x2 { uint8_t pair; };  // the earlier value in the low bits, each plus 8

inline vec load(const bf16* p) { return bits_as<vec>(load_u16(p) << 16); }

inline vec load(const fp16* p) {
#if defined(__AVX512F__)
  return bits_as<vec>(_mm512_cvtph_ps(read<__m256i>(p)));
#elif defined(__AVX2__)
  vec v;
  for (int i = 0; i < kParts; ++i) v.parts[i] = (Part<float>)_mm256_cvtph_ps(read<__m128i>(p + i * kPartLanes));
  return v;
#else
  // Shift exponent and mantissa to fp32's place. The multiplication rebases the exponent and is exact, also for
  // subnormal numbers.
  const uvec h = load_u16(p);
  const vec magnitude = bits_as<vec>((h & 0x7fffu) << 13) * 0x1p112f;
  const uvec not_finite = uvec{} - (((h & 0x7fffu) + 0x400u) >> 15);  // all bits set if those of the exponent are
  return bits_as<vec>(bits_as<uvec>(magnitude) | (not_finite & 0x7f800000u) | (h & 0x8000u) << 16);
#endif
}

// Load and widen sixteen bytes. GCC 12 compiles __builtin_convertvector from bytes to scalar code, ten times as slow.
inline ivec load_i8(const void* p) {
#if defined(__AVX512F__)
  return bits_as<ivec>(_mm512_cvtepi8_epi32(read<__m128i>(p)));
#elif defined(__AVX2__)
  ivec v;
  for (int i = 0; i < kParts; ++i) {
    const int64_t eight = read<int64_t>(static_cast<const char*>(p) + i * kPartLanes);
    v.parts[i] = (Part<int32_t>)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight));
  }
  return v;
#else
  int32_t wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = static_cast<const int8_t*>(p)[i];
  return read<ivec>(wide);
#endif
}

inline vec load(const int8_t* p) { return convert<vec>(load_i8(p)); }

// Load the lower values of sixteen pairs, then the upper ones.
inline void load_pairs(const int4x2* p, vec (&values)[2]) {
  const ivec pair = load_i8(p);  // the sign fills only bits above the eight that count
#if defined(__AVX512F__)
  // A permutation looks only at the four lowest bits of an index, so it masks and converts in one instruction.
  const __m512 table = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  const __m512i index = (__m512i)pair;
  values[0] = (vec)_mm512_permutexvar_ps(index, table);
  values[1] = (vec)_mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), table);
#else
  values[0] = convert<vec>((pair & 15) - 8);
  values[1] = convert<vec>(((pair >> 4) & 15) - 8);
#endif
}

inline float load_one(const float* p) { return *p; }
inline float load_one(const bf16* p) { return bits_as<float>(uint32_t(p->bits) << 16); }
inline float load_one(const fp16* p) {
  fp16 padded[kLanes] = {*p};
  return load(padded)[0];
}

inline void store_one(float* p, float value) { *p = value; }

// Round to nearest, ties to even, as torch does.
inline void store_one(bf16* p, float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  p->bits = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void store_one(fp16* p, float value) {
#if defined(__AVX2__)
  p->bits = uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float magnitude = std::fabs(value);
  if (!(magnitude < 65520.0f)) {
    p->bits = uint16_t(sign | (std::isnan(value) ? 0x7e00u : 0x7c00u));
  } else if (magnitude < 0x1p-14f) {  // subnormal: fixed point in units of 2^-24
    p->bits = uint16_t(sign | uint32_t(std::nearbyint(magnitude * 0x1p24f)));
  } else {
    const uint32_t rebased = (bits & 0x7fffffffu) - (112u << 23);
    p->bits = uint16_t(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
#endif
}

// Round and store sixteen values as store_one does.
inline void store(bf16* p, vec v) {
  const uvec bits = bits_as<uvec>(v);
  store_u16(p, (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void store(fp16* p, vec v) {
#if defined(__AVX512F__)
  const __m256i rounded = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &rounded, sizeof(rounded));
#elif defined(__AVX2__)
  for (int i = 0; i < kParts; ++i) {
    const __m128i rounded = _mm256_cvtps_ph((__m256)v.parts[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p + i * kPartLanes, &rounded, sizeof(rounded));
  }
#else
  for (int i = 0; i < kLanes; ++i) store_one(p + i, v[i]);
#endif
}

// Combine each lane with that S lanes away, then S / 2 and so on: in the end each lane has the result of all.
template <int S = kLanes / 2, typename Combine>
vec fold(vec v, Combine combine) {
  v = combine(v, reordered<Exchanged, S>(v, v));
  if constexpr (S > 1) return fold<S / 2>(v, combine);
  return v;
}

inline float largest(vec v) { return fold(v, [](vec a, vec b) { return max(a, b); })[0]; }
inline float sum(vec v) { return fold(v, [](vec a, vec b) { return a + b; })[0]; }

// Exchange blocks of S lanes between two rows: one of the four steps that transpose a square of 16 x 16.
template <int S>
void swap_blocks(vec& a, vec& b) {
  const vec low = reordered<Even, S>(a, b);
  b = reordered<Odd, S>(a, b);
  a = low;
}

template <int S>
void transpose_step(vec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    if (!(i & S)) swap_blocks<S>(rows[i], rows[i + S]);
}

inline void transpose(vec (&rows)[kLanes]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
  transpose_step<8>(rows);
}

// Halve the number of vectors: each holds the sums of pairs of lanes of two neighbours.
template <int S, int COUNT>
[[gnu::always_inline]] inline void add_neighbours(vec (&rows)[kLanes]) {
  for (int i = 0; i < COUNT; i += 2) {
    swap_blocks<S>(rows[i], rows[i + 1]);
    rows[i / 2] = rows[i] + rows[i + 1];
  }
}

// Return the sum of each of sixteen vectors.
inline vec sums(vec (&rows)[kLanes]) {
  add_neighbours<1, 16>(rows);
  add_neighbours<2, 8>(rows);
  add_neighbours<4, 4>(rows);
  add_neighbours<8, 2>(rows);
  return rows[0];
}

// Compute e^x for x <= 0 in sixteen lanes, to 2 ulp: 2^n times a polynomial of the rest (Cephes' expf). The result is 0
// below -87.7, where n is -127.
inline vec exp_nonpositive(vec x) {
  x = max(splat(-88.0f), x);  // in this order, NaN stays NaN
  const ivec n = convert<ivec>(x * 1.44269504f - 0.5f);
  const vec whole = convert<vec>(n);
  x = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * x + c;
  p = p * x * x + x + 1.0f;
  return p * bits_as<vec>((n + 127) << 23);
}

}  // namespace opt_trt
