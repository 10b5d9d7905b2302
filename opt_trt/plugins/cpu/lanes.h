// Sixteen lanes of 32 bits: one register if registers are that wide, otherwise a class of several.
//
// GCC's vector extension has every operation for every instruction set, but keeps vectors wider than a register in
// memory: products by AVX2 were eight times slower than with this class (GCC 12).
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace opt_trt {

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kRegisterBytes = 16, kRegisters = 32;
#else
constexpr int kRegisterBytes = 16, kRegisters = 16;
#endif
constexpr int kSums = kRegisters / 4 * 3;    // registers for the sums of a product; the others are for its factors
constexpr int kParts = 64 / kRegisterBytes;  // registers that sixteen lanes take
constexpr int kPartLanes = kLanes / kParts;

template <typename T, int BYTES>
struct Register { typedef T type __attribute__((vector_size(BYTES))); };

template <typename T> using Part = typename Register<T, kRegisterBytes>::type;

// Read the bits of a value from memory, or those of another value.
template <typename To>
To read(const void* p) {
  To value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

template <typename To, typename From>
To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return read<To>(&from);
}

// Orders of the lanes of two registers, or of the registers of two vectors, with SIZE of them each: place i gets what
// was at of(i), where the second's places count from SIZE on. In blocks of S, Exchanged swaps neighbours, Even takes
// the even blocks of both, and Odd the odd ones.
template <int S, int SIZE> struct Exchanged { static constexpr int of(int i) { return i ^ S; } };
template <int S, int SIZE> struct Even { static constexpr int of(int i) { return i & S ? SIZE + i - S : i; } };
template <int S, int SIZE> struct Odd { static constexpr int of(int i) { return i & S ? SIZE + i : i + S; } };

template <typename Order, typename P, int... I>
P shuffled(P a, P b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Order::of(I)...);
#else
  return __builtin_shuffle(a, b, Part<int32_t>{Order::of(I)...});
#endif
}

template <typename Order, typename P>
P shuffled(P a, P b) {
  return shuffled<Order>(a, b, std::make_integer_sequence<int, kPartLanes>{});
}

#if defined(__AVX512F__)
typedef Part<float> vec;
typedef Part<uint32_t> uvec;
typedef Part<int32_t> ivec;

inline vec splat(float value) { return value - vec{}; }  // with plus it would not be a plain broadcast, because of -0

template <typename To, typename From>
To convert(From from) { return __builtin_convertvector(from, To); }

inline vec max(vec a, vec b) { return a > b ? a : b; }

inline void add_product(vec& sum, vec a, vec b) { sum += a * b; }

template <template <int, int> typename Order, int S>
vec reordered(vec a, vec b) { return shuffled<Order<S, kPartLanes>>(a, b); }

inline vec load(const float* p) { return read<vec>(p); }
inline uvec load(const uint32_t* p) { return read<uvec>(p); }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof(v)); }

inline uvec load_u16(const void* p) {
  return convert<uvec>(read<Register<uint16_t, kRegisterBytes / 2>::type>(p));
}

inline void store_u16(void* p, uvec v) {
  const auto narrow = convert<Register<uint16_t, kRegisterBytes / 2>::type>(v);
  std::memcpy(p, &narrow, sizeof(narrow));
}
#else
template <typename T>
struct Lanes {
  typedef T Lane;
  Part<T> parts[kParts];

  Lanes() = default;
  Lanes(T value) {
    for (auto& part : parts) part = value - Part<T>{};
  }

  T operator[](int64_t i) const { return parts[i / kPartLanes][i % kPartLanes]; }

  // Apply `f(part of a, part of b)` to all parts.
  template <typename F>
  static Lanes each(const Lanes& a, const Lanes& b, F f) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) result.parts[i] = f(a.parts[i], b.parts[i]);
    return result;
  }
  friend Lanes operator+(Lanes a, Lanes b) { return each(a, b, [](auto x, auto y) { return x + y; }); }
  friend Lanes operator-(Lanes a, Lanes b) { return each(a, b, [](auto x, auto y) { return x - y; }); }
  friend Lanes operator*(Lanes a, Lanes b) { return each(a, b, [](auto x, auto y) { return x * y; }); }
  friend Lanes operator&(Lanes a, Lanes b) { return each(a, b, [](auto x, auto y) { return x & y; }); }
  friend Lanes operator|(Lanes a, Lanes b) { return each(a, b, [](auto x, auto y) { return x | y; }); }
  friend Lanes operator<<(Lanes a, int bits) { return each(a, a, [=](auto x, auto) { return x << bits; }); }
  friend Lanes operator>>(Lanes a, int bits) { return each(a, a, [=](auto x, auto) { return x >> bits; }); }
  Lanes& operator+=(Lanes other) { return *this = *this + other; }
  Lanes& operator*=(Lanes other) { return *this = *this * other; }
};

typedef Lanes<float> vec;
typedef Lanes<uint32_t> uvec;
typedef Lanes<int32_t> ivec;

inline vec splat(float value) { return value; }

template <typename To, typename From>
To convert(const From& from) {
  To to;
  for (int i = 0; i < kParts; ++i) to.parts[i] = __builtin_convertvector(from.parts[i], Part<typename To::Lane>);
  return to;
}

inline vec max(vec a, vec b) {
  return vec::each(a, b, [](auto x, auto y) { return x > y ? x : y; });
}

template <template <int, int> typename Order, int S>
vec reordered(const vec& a, const vec& b) {
  vec result;
  for (int i = 0; i < kParts; ++i) {
    if constexpr (S < kPartLanes) result.parts[i] = shuffled<Order<S, kPartLanes>>(a.parts[i], b.parts[i]);
    else {
      const int from = Order<S / kPartLanes, kParts>::of(i);
      result.parts[i] = from < kParts ? a.parts[from] : b.parts[from - kParts];
    }
  }
  return result;
}

// Add a product and round once. GCC 12 sometimes rounds twice where it may, so that results depended on the tile.
inline void add_product(vec& sum, const vec& a, const vec& b) {
  for (int i = 0; i < kParts; ++i) {
#if defined(__AVX2__)
    sum.parts[i] = (Part<float>)_mm256_fmadd_ps((__m256)a.parts[i], (__m256)b.parts[i], (__m256)sum.parts[i]);
#else
    sum.parts[i] += a.parts[i] * b.parts[i];
#endif
  }
}

// Load part by part: all at once would be copied through memory.
template <typename T>
Lanes<T> load(const T* p) {
  Lanes<T> v;
  for (int i = 0; i < kParts; ++i) v.parts[i] = read<Part<T>>(p + i * kPartLanes);
  return v;
}

inline void store(float* p, const vec& v) {
  for (int i = 0; i < kParts; ++i) std::memcpy(p + i * kPartLanes, &v.parts[i], kRegisterBytes);
}

typedef Register<uint16_t, kRegisterBytes / 2>::type HalfPart;

inline uvec load_u16(const void* p) {
  uvec v;
  for (int i = 0; i < kParts; ++i) {
    const void* at = static_cast<const uint16_t*>(p) + i * kPartLanes;
#if defined(__AVX2__)
    v.parts[i] = (Part<uint32_t>)_mm256_cvtepu16_epi32(read<__m128i>(at));  // GCC 12 takes five instructions
#else
    v.parts[i] = __builtin_convertvector(read<HalfPart>(at), Part<uint32_t>);
#endif
  }
  return v;
}

inline void store_u16(void* p, const uvec& v) {
  for (int i = 0; i < kParts; ++i) {
    const HalfPart narrow = __builtin_convertvector(v.parts[i], HalfPart);
    std::memcpy(static_cast<uint16_t*>(p) + i * kPartLanes, &narrow, sizeof(narrow));
  }
}
#endif

}  // namespace opt_trt
