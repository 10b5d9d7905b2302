// Fused attention: tiles of keys and values, widened once, meet a run of queries with a running softmax.
#pragma once
#include "cache.h"

namespace opt_trt {

constexpr int64_t kKeyTile = 64;
constexpr int64_t kQueryTile = 64;

// Widen keys [n, D], transposed to [D, kKeyTile] so that a query meets 16 keys per instruction.
template <typename C>
void widen_keys(const C* keys, int64_t n, int64_t size, float* out) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int64_t d = 0; d < size; d += kLanes) {
      vec square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) square[i] = load(keys + (j + i) * size + d);
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (d + i) * kKeyTile + j, square[i]);
    }
  for (; j < n; ++j)
    for (int64_t d = 0; d < size; ++d) out[d * kKeyTile + j] = load_one(keys + j * size + d);
}

// Keys of positions [start, start + n) to [D, kKeyTile], their values to [n, D].
template <typename C>
void load_tile(const Attention& a, int64_t s, int64_t h, int64_t start, int64_t n, Scratch& scratch) {
  for_each_run<C>(a, s, h, 0, start, start + n, nullptr, [&](const Run<C>& keys) {
    widen_keys(keys.rows, keys.count, a.head_size, scratch.k.data() + keys.offset);
  });
  for_each_run<C>(a, s, h, 1, start, start + n, nullptr, [&](const Run<C>& values) {
    float* to = scratch.v.data() + values.offset * a.head_size;
    for (int64_t i = 0; i < values.count * a.head_size; i += kLanes) store(to + i, load(values.rows + i));
  });
}

// The state of up to kQueryTile queries between two tiles of keys.
struct Running {
  const float* q;         // [count, D], scaled
  const float* k;         // [D, kKeyTile]
  const float* v;         // [kKeyTile, D]
  float* out;             // first query's output; `out_stride` floats to the next query's
  float* top;             // [count], largest score so far
  float* denominator;     // [count]
  int64_t out_stride, size;
};

// Q queries from `i` on meet a tile of keys, of which query i + r sees the first visible[r].
template <int Q>
void meet(const Running& r, int64_t i, const int64_t* visible) {
  constexpr int64_t kVecs = kKeyTile / kLanes;
  vec score[Q][kVecs] = {};
  for (int64_t d = 0; d < r.size; ++d) {
    vec key[kVecs];
    for (int64_t j = 0; j < kVecs; ++j) key[j] = load(r.k + d * kKeyTile + j * kLanes);
    for (int q = 0; q < Q; ++q) {
      const vec value = splat(r.q[(i + q) * r.size + d]);
      for (int64_t j = 0; j < kVecs; ++j) score[q][j] += value * key[j];
    }
  }
  float weight[Q][kKeyTile];
  float shrink[Q];
  for (int q = 0; q < Q; ++q) {
    std::memcpy(weight[q], score[q], sizeof(weight[q]));
    std::fill(weight[q] + visible[q], weight[q] + kKeyTile, -INFINITY);
    vec best = splat(r.top[i + q]);
    for (int64_t j = 0; j < kKeyTile; j += kLanes) best = max(best, load(weight[q] + j));
    const float top = largest(best);
    shrink[q] = std::exp(r.top[i + q] - top);
    vec total = {};
    for (int64_t j = 0; j < kKeyTile; j += kLanes) {
      const vec e = exp_nonpositive(load(weight[q] + j) - top);
      store(weight[q] + j, e);
      total += e;
    }
    r.top[i + q] = top;
    r.denominator[i + q] = r.denominator[i + q] * shrink[q] + sum(total);
  }
  const int64_t keys = *std::max_element(visible, visible + Q);
  for (int64_t d = 0; d < r.size; d += kLanes) {
    vec total[Q];
    for (int q = 0; q < Q; ++q) total[q] = load(r.out + (i + q) * r.out_stride + d) * shrink[q];
    for (int64_t j = 0; j < keys; ++j) {
      const vec value = load(r.v + j * r.size + d);
      for (int q = 0; q < Q; ++q) total[q] += splat(weight[q][j]) * value;
    }
    for (int q = 0; q < Q; ++q) store(r.out + (i + q) * r.out_stride + d, total[q]);
  }
}

// Fused: tiles of keys and values stay in cache while up to kQueryTile queries attend to them with a running softmax.
// head_size is a multiple of 16.
template <typename C>
void attend_flash(const Attention& a, int64_t s, int64_t h, int64_t first, int64_t count, Scratch& scratch) {
  const int64_t base = a.visible(s, first) - 1;  // position of query 0
  const int64_t size = a.head_size, t = a.query_start[s] + first;
  scratch.q.resize(count * size);
  scratch.k.resize(size * kKeyTile);
  scratch.v.resize(kKeyTile * size);
  scratch.top.assign(count, -INFINITY);
  scratch.denominator.assign(count, 0.0f);
  const Running r{scratch.q.data(), scratch.k.data(), scratch.v.data(), a.output(t, h),
                  scratch.top.data(), scratch.denominator.data(), a.heads * size, size};
  for (int64_t i = 0; i < count; ++i) {
    std::fill(r.out + i * r.out_stride, r.out + i * r.out_stride + size, 0.0f);
    scale_query(a, t + i, h, scratch.q.data() + i * size);
  }
  for (int64_t start = 0; start < base + count; start += kKeyTile) {
    const int64_t tile = std::min(kKeyTile, base + count - start);
    load_tile<C>(a, s, h, start, tile, scratch);
    const auto visible = [&](int64_t i) { return std::min(tile, base + i + 1 - start); };
    int64_t i = std::max<int64_t>(0, start - base);
    for (; i + 4 <= count; i += 4) {
      const int64_t seen[] = {visible(i), visible(i + 1), visible(i + 2), visible(i + 3)};
      meet<4>(r, i, seen);
    }
    for (; i < count; ++i) {
      const int64_t seen[] = {visible(i)};
      meet<1>(r, i, seen);
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < size; ++d) r.out[i * r.out_stride + d] /= scratch.denominator[i];
}

}  // namespace opt_trt
