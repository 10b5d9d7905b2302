// Sixteen fp32 lanes and the loads that widen stored weights into them.
//
// GCC's vector extension lowers a 64-byte vector to whatever -march offers (one zmm, two ymm, four xmm), so one source
// serves every instruction set; only the fp16 load needs an intrinsic where the processor has one.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace opt_trt {

constexpr int64_t kLanes = 16;
constexpr int kSecondLevel = 2;  // the cache to prefetch into; the first is too small for what is under way
typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(32), aligned(2)));

struct fp16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
struct int4x2 { uint8_t pair; };  // the earlier value in the low bits, each plus 8

inline vec splat(float value) { return value - vec{}; }

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof(v)); }

inline uvec load_u16(const void* p) {
  hvec h;
  std::memcpy(&h, p, sizeof(h));
  return __builtin_convertvector(h, uvec);
}

inline vec load(const bf16* p) {
  const uvec bits = load_u16(p) << 16;
  vec v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

inline vec load(const fp16* p) {
  vec v;
#if defined(__AVX512F__)
  const __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  std::memcpy(&v, &wide, sizeof(v));
#elif defined(__F16C__)
  for (int half = 0; half < 2; ++half) {
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * half)));
    std::memcpy(reinterpret_cast<char*>(&v) + 32 * half, &wide, sizeof(wide));
  }
#else
  // Shift exponent and mantissa into fp32's place; the multiplication rebases the exponent and is exact, subnormals too.
  const uvec h = load_u16(p);
  const uvec sign = (h & 0x8000u) << 16;
  uvec magnitude = (h & 0x7fffu) << 13;
  std::memcpy(&v, &magnitude, sizeof(v));
  v *= 0x1p112f;
  std::memcpy(&magnitude, &v, sizeof(v));
  magnitude |= sign;
  std::memcpy(&v, &magnitude, sizeof(v));
#endif
  return v;
}

// Sixteen bytes, widened. GCC 12 takes __builtin_convertvector from bytes apart into scalars, ten times as slow.
inline ivec load_i8(const void* p) {
  ivec v;
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  std::memcpy(&v, &wide, sizeof(v));
#elif defined(__AVX2__)
  for (int half = 0; half < 2; ++half) {
    const void* at = static_cast<const char*>(p) + 8 * half;
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(at)));
    std::memcpy(reinterpret_cast<char*>(&v) + 32 * half, &wide, sizeof(wide));
  }
#else
  const int8_t* bytes = static_cast<const int8_t*>(p);
  for (int i = 0; i < kLanes; ++i) v[i] = bytes[i];
#endif
  return v;
}

inline vec load(const int8_t* p) { return __builtin_convertvector(load_i8(p), vec); }

// The lower values of sixteen pairs, then the upper ones.
inline void load_pairs(const int4x2* p, vec (&values)[2]) {
  const ivec pair = load_i8(p);  // what the sign fills lies above the eight bits that count
#if defined(__AVX512F__)
  // A permutation of a table looks at the four lowest bits of an index only: it masks and converts at once.
  const __m512 table = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  __m512i index;
  std::memcpy(&index, &pair, sizeof(index));
  const __m512 lower = _mm512_permutexvar_ps(index, table);
  const __m512 upper = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), table);
  std::memcpy(&values[0], &lower, sizeof(lower));
  std::memcpy(&values[1], &upper, sizeof(upper));
#else
  values[0] = __builtin_convertvector((pair & 15) - 8, vec);
  values[1] = __builtin_convertvector(((pair >> 4) & 15) - 8, vec);
#endif
}

inline float load_one(const float* p) { return *p; }
inline float load_one(const bf16* p) {
  const uint32_t bits = uint32_t(p->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float load_one(const fp16* p) {
  fp16 padded[kLanes] = {*p};
  return load(padded)[0];
}

inline void store_one(float* p, float value) { *p = value; }

// Round to nearest, ties to even, as torch does.
inline void store_one(bf16* p, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  p->bits = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void store_one(fp16* p, float value) {
#if defined(__F16C__)
  p->bits = uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) {
    p->bits = uint16_t(sign | 0x7c00u);
  } else if (magnitude < 0x1p-14f) {  // subnormal: fixed point in units of 2^-24
    p->bits = uint16_t(sign | uint32_t(std::nearbyint(magnitude * 0x1p24f)));
  } else {
    const uint32_t rebased = (bits & 0x7fffffffu) - (112u << 23);
    p->bits = uint16_t(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
#endif
}

// Sixteen values, rounded as store_one does.
inline void store(bf16* p, vec v) {
  uvec bits;
  std::memcpy(&bits, &v, sizeof(bits));
  const hvec rounded = __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, hvec);
  std::memcpy(p, &rounded, sizeof(rounded));
}

inline void store(fp16* p, vec v) {
#if defined(__AVX512F__)
  __m512 wide;
  std::memcpy(&wide, &v, sizeof(wide));
  const __m256i rounded = _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &rounded, sizeof(rounded));
#else
  for (int i = 0; i < kLanes; ++i) store_one(p + i, v[i]);
#endif
}

inline vec max(vec a, vec b) { return a > b ? a : b; }

// Chosen lanes of two vectors: 0 to 15 are a's, 16 to 31 b's.
template <int... I>
vec pick(vec a, vec b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, ivec{I...});
#endif
}

// Lanes combined with those S away, S, 2 S ... 8: the result of all is in each.
template <int S = 8, typename Combine>
vec fold(vec v, Combine combine) {
  if constexpr (S == 8) v = combine(v, pick<8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7>(v, v));
  if constexpr (S == 4) v = combine(v, pick<4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11>(v, v));
  if constexpr (S == 2) v = combine(v, pick<2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13>(v, v));
  if constexpr (S == 1) v = combine(v, pick<1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14>(v, v));
  if constexpr (S > 1) return fold<S / 2>(v, combine);
  return v;
}

inline float largest(vec v) { return fold(v, [](vec a, vec b) { return max(a, b); })[0]; }
inline float sum(vec v) { return fold(v, [](vec a, vec b) { return a + b; })[0]; }

// One of the four steps by which a square of 16 x 16 changes rows for columns: blocks of S lanes change places.
template <int S>
void swap_blocks(vec& a, vec& b) {
  vec low, high;
  if constexpr (S == 1) {
    low = pick<0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30>(a, b);
    high = pick<1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31>(a, b);
  } else if constexpr (S == 2) {
    low = pick<0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29>(a, b);
    high = pick<2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31>(a, b);
  } else if constexpr (S == 4) {
    low = pick<0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27>(a, b);
    high = pick<4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31>(a, b);
  } else {
    low = pick<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(a, b);
    high = pick<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(a, b);
  }
  a = low;
  b = high;
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

// Half as many vectors, which hold the sums of pairs of lanes of two neighbours.
template <int S, int COUNT>
void add_neighbours(vec (&rows)[kLanes]) {
  for (int i = 0; i < COUNT; i += 2) {
    swap_blocks<S>(rows[i], rows[i + 1]);
    rows[i / 2] = rows[i] + rows[i + 1];
  }
}

// The sum of each of sixteen vectors.
inline vec sums(vec (&rows)[kLanes]) {
  add_neighbours<1, 16>(rows);
  add_neighbours<2, 8>(rows);
  add_neighbours<4, 4>(rows);
  add_neighbours<8, 2>(rows);
  return rows[0];
}

// e^x for x <= 0 in sixteen lanes, to 2 ulp: 2^n times a polynomial on the rest (Cephes' expf); 0 where n is -127, below -87.7.
inline vec exp_nonpositive(vec x) {
  x = max(splat(-88.0f), x);  // this way round NaN stays
  const ivec n = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);
  const vec whole = __builtin_convertvector(n, vec);
  x = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * x + c;
  p = p * x * x + x + 1.0f;
  const ivec bits = (n + 127) << 23;
  vec power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

}  // namespace opt_trt
