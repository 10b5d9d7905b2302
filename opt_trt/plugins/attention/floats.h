// The form of fused attention that computes in fp32, whatever type the cache stores.
#pragma once
#include "flash.h"

namespace opt_trt {

struct Floats {
  static constexpr int64_t kNumbers = 1;  // of an item

  static void pack(vec numbers, float* items) { store(items, numbers); }

  template <typename C>
  static float item(const C* number) { return load_one(number); }

  template <typename C>
  static vec items(const C* numbers) { return load(numbers); }

  // Write a value [D] to row `at` of items.
  template <typename C>
  static void widen_value(const C* value, int64_t size, int64_t at, float* items) {
    for (int64_t d = 0; d < size; d += kLanes) store(items + at * size + d, load(value + d));
  }

  template <int QUERIES, int GROUPS>
  static void multiply(const Factors& f, vec (&result)[QUERIES][GROUPS]) {
    constexpr int kAtOnce = QUERIES * GROUPS * kParts <= kSums ? GROUPS : 1;  // all if registers hold their sums
    for (int j = 0; j < GROUPS; j += kAtOnce) {
      const Factors some{f.left, f.right + j * kLanes, f.left_stride, f.right_stride, f.n};
      multiply_some<QUERIES, kAtOnce>(some, &result[0][j], GROUPS);
    }
  }

 private:
  // Not inlined, because a softmax beside it would leave too few registers.
  template <int QUERIES, int GROUPS>
  [[gnu::noinline]] static void multiply_some(const Factors& f, vec* result, int64_t stride) {
    vec sum[QUERIES][GROUPS] = {};
    for (int64_t p = 0; p < f.n; ++p) {
      vec right[GROUPS];
      for (int j = 0; j < GROUPS; ++j) right[j] = load(f.right + p * f.right_stride + j * kLanes);
      for (int i = 0; i < QUERIES; ++i) {
        const vec left = splat(f.left[i * f.left_stride + p]);
        for (int j = 0; j < GROUPS; ++j) add_product(sum[i][j], left, right[j]);
      }
    }
    for (int i = 0; i < QUERIES; ++i)
      for (int j = 0; j < GROUPS; ++j) result[i * stride + j] = sum[i][j];
  }
};

}  // namespace opt_trt
