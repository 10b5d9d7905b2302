// Unfused attention: a row of scores, its softmax, then the values. It takes one query at a time and reads the cache
// once, in order.
//
// A row is computed in parts of kPart keys, which are merged in order. It does not matter which thread computes a part,
// so a query's sums depend only on its own sequence.
#pragma once
#include "cache.h"

namespace opt_trt {

constexpr int64_t kCacheLine = 64;  // bytes
constexpr int64_t kPart = 512;
constexpr int64_t kHeads = 8;  // at most; in a block, keys of neighbouring heads are neighbours in memory

// A query's output [D] from some keys, before the division by the denominator.
struct Partial {
  float* sum;
  float top, denominator;  // the largest score, and the sum of e^(score - top)
};

// Prefetch rows [count, D] into the second-level cache. At the end of a block, the processor's own prefetcher cannot
// predict the next rows.
template <typename C>
void fetch(const C* rows, int64_t count, int64_t size) {
  const char* p = reinterpret_cast<const char*>(rows);
  const int64_t bytes = count * size * int64_t(sizeof(C));
  for (int64_t b = 0; b < bytes; b += kCacheLine) __builtin_prefetch(p + b, 0, kSecondLevel);
}

// Return the scores of up to sixteen keys [count, D]; lanes beyond are undefined. Prefetch sixteen rows from `next` on.
template <typename C>
vec dots(const float* q, const C* k, const C* next, int64_t count, int64_t size) {
  constexpr int64_t kKeys = 4;  // keys whose sums stay in registers
  vec total[kLanes];
  const auto key = [&](int64_t j) { return k + std::min(j, count - 1) * size; };
  for (int64_t first = 0; first < kLanes; first += kKeys) {
    vec some[kKeys];
    for (int64_t j = 0; j < kKeys; ++j) some[j] = splat(0.0f);  // GCC would write `= {}` to memory
    fetch(next + first * size, kKeys, size);
    for (int64_t d = 0; d + kLanes <= size; d += kLanes)
      for (int64_t j = 0; j < kKeys; ++j) add_product(some[j], load(q + d), load(key(first + j) + d));
    std::copy(some, some + kKeys, total + first);
  }
  const vec whole = sums(total);
  if (size % kLanes == 0) return whole;
  float scores[kLanes];
  store(scores, whole);
  for (int64_t d = size / kLanes * kLanes; d < size; ++d)
    for (int64_t j = 0; j < kLanes; ++j) scores[j] += q[d] * load_one(key(j) + d);
  return load(scores);
}

// Add weights x values [count, D] to 16 * N features of the output. Prefetch as many rows from `next` on.
template <typename C, int N>
void add_values(float* out, const float* weight, const C* v, const C* next, int64_t count, int64_t size) {
  vec total[N];
  for (int i = 0; i < N; ++i) total[i] = load(out + i * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    fetch(next + j * size, 1, N * kLanes);
    for (int i = 0; i < N; ++i) add_product(total[i], splat(weight[j]), load(v + j * size + i * kLanes));
  }
  for (int i = 0; i < N; ++i) store(out + i * kLanes, total[i]);
}

template <typename C>
void add_values(float* out, const float* weight, const C* v, const C* next, int64_t count, int64_t size) {
  int64_t d = 0;
  for (; d + 8 * kLanes <= size; d += 8 * kLanes) add_values<C, 8>(out + d, weight, v + d, next + d, count, size);
  switch ((size - d) / kLanes) {
    case 7: add_values<C, 7>(out + d, weight, v + d, next + d, count, size); break;
    case 6: add_values<C, 6>(out + d, weight, v + d, next + d, count, size); break;
    case 5: add_values<C, 5>(out + d, weight, v + d, next + d, count, size); break;
    case 4: add_values<C, 4>(out + d, weight, v + d, next + d, count, size); break;
    case 3: add_values<C, 3>(out + d, weight, v + d, next + d, count, size); break;
    case 2: add_values<C, 2>(out + d, weight, v + d, next + d, count, size); break;
    case 1: add_values<C, 1>(out + d, weight, v + d, next + d, count, size); break;
  }
  for (d = size / kLanes * kLanes; d < size; ++d)
    for (int64_t j = 0; j < count; ++j) out[d] += weight[j] * load_one(v + j * size + d);
}

// Write the scores [count] of a query with keys [count, D]. The output must have room for one more vector.
template <typename C>
void score(const float* q, const C* keys, const C* next, int64_t count, int64_t size, float* out) {
  for (int64_t j = 0; j < count; j += kLanes)
    store(out + j, dots(q, keys + j * size, next + j * size, std::min(count - j, kLanes), size));
}

// Turn scores [count] into weights. The array must have room for one more vector.
inline void weigh(float* score, int64_t count, Partial& part) {
  std::fill(score + count, score + count + kLanes, -INFINITY);
  vec top = splat(-INFINITY), total = {};
  for (int64_t j = 0; j < count; j += kLanes) top = max(top, load(score + j));
  part.top = largest(top);
  for (int64_t j = 0; j < count; j += kLanes) {
    const vec e = exp_nonpositive(load(score + j) - part.top);
    store(score + j, e);
    total += e;
  }
  part.denominator = sum(total);
}

// Attend with a scaled query of some heads to the keys at positions [first, last) of its sequence, at most kPart.
template <typename C>
void attend_part(
    const Attention& a, int64_t s, Heads heads, const float* q, int64_t first, int64_t last, Partial* parts) {
  alignas(64) float weight[kHeads][kPart + kLanes];
  const int64_t size = a.head_size, stride = a.block_tokens * size;  // from head to head
  const C* values = row_at<C>(a, s, heads.first, 1, first);
  for_each_run<C>(a, s, heads.first, 0, first, last, values, [&](const Run<C>& run) {
    for (int64_t h = 0, at = 0; h < heads.count; ++h, at += stride)
      score(q + h * size, run.rows + at, run.next + at, run.count, size, weight[h] + run.offset);
  });
  for (int64_t h = 0; h < heads.count; ++h) {
    weigh(weight[h], last - first, parts[h]);
    std::fill(parts[h].sum, parts[h].sum + size, 0.0f);
  }
  for_each_run<C>(a, s, heads.first, 1, first, last, values, [&](const Run<C>& run) {
    for (int64_t h = 0, at = 0; h < heads.count; ++h, at += stride)
      add_values(parts[h].sum, weight[h] + run.offset, run.rows + at, run.next + at, run.count, size);
  });
}

inline void merge(Partial& part, const Partial& next, int64_t size) {
  const float top = std::max(part.top, next.top);
  const float keep = std::exp(part.top - top), gain = std::exp(next.top - top);
  for (int64_t d = 0; d < size; ++d) part.sum[d] = part.sum[d] * keep + next.sum[d] * gain;
  part.denominator = part.denominator * keep + next.denominator * gain;
  part.top = top;
}

inline void finish(const Partial& part, float* out, int64_t size) {
  for (int64_t d = 0; d < size; ++d) out[d] = part.sum[d] / part.denominator;
}

// Compute queries [first, first + count) of some heads of a sequence, one after another.
template <typename C>
void attend_unfused(const Attention& a, int64_t s, Heads heads, int64_t first, int64_t count, Scratch& scratch) {
  const int64_t size = a.head_size;
  scratch.q.resize(3 * kHeads * size);
  float* q = scratch.q.data();
  Partial whole[kHeads], next[kHeads];
  for (int64_t h = 0; h < heads.count; ++h) {
    whole[h].sum = q + (kHeads + h) * size;
    next[h].sum = q + (2 * kHeads + h) * size;
  }
  for (int64_t i = first; i < first + count; ++i) {
    const int64_t t = a.query_start[s] + i, length = a.visible(s, i);
    for (int64_t h = 0; h < heads.count; ++h) scale_query(a, t, heads.first + h, q + h * size);
    attend_part<C>(a, s, heads, q, 0, std::min(kPart, length), whole);
    for (int64_t key = kPart; key < length; key += kPart) {
      attend_part<C>(a, s, heads, q, key, std::min(key + kPart, length), next);
      for (int64_t h = 0; h < heads.count; ++h) merge(whole[h], next[h], size);
    }
    for (int64_t h = 0; h < heads.count; ++h) finish(whole[h], a.output(t, heads.first + h), size);
  }
}

}  // namespace opt_trt
