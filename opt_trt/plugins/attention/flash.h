// Fused attention: a tile of keys and values is widened once and used by many queries, each with a running softmax.
//
// Both matrix products multiply items of 32 bits. An item is one number of fp32 (floats.h), or two of bf16 (pairs.h):
// neighbouring features in the product of queries and keys, neighbouring keys in that of weights and values. The
// template argument Form chooses.
#pragma once
#include "cache.h"

namespace opt_trt {

constexpr int64_t kKeyTile = 64;
constexpr int64_t kQueryTile = 64;
constexpr int kKeyGroups = kKeyTile / kLanes;
constexpr int kFeatureGroups = 4;  // groups of outputs whose sums stay in registers

// The factors of a product left [rows, n] x right [n, columns], in items; rows are a stride apart.
struct Factors {
  const float *left, *right;
  int64_t left_stride, right_stride, n;
};

// The state of up to kQueryTile queries between two tiles of keys, with F numbers in an item.
struct Running {
  const float* q;      // items [count, D / F] of scaled queries
  const float* k;      // items [D / F, kKeyTile]
  const float* v;      // items [kKeyTile / F, D]
  float* out;          // the first query's output; the next query's is `out_stride` floats further
  float* top;          // [count], the largest score so far
  float* denominator;  // [count]
  int64_t out_stride, size;
};

// Transpose keys [n, D] to items [D / F, kKeyTile], so that one instruction multiplies a query with 16 keys.
template <typename Form, typename C>
void widen_keys(const C* keys, int64_t n, int64_t size, float* out) {
  const int64_t items = size / Form::kNumbers, squares = n / kLanes * kLanes, whole = items / kLanes * kLanes;
  const auto at = [&](int64_t j, int64_t d) { return keys + j * size + d * Form::kNumbers; };
  for (int64_t j = 0; j < squares; j += kLanes)
    for (int64_t d = 0; d < whole; d += kLanes) {
      vec square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) square[i] = Form::items(at(j + i, d));
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (d + i) * kKeyTile + j, square[i]);
    }
  for (int64_t j = 0; j < n; ++j)
    for (int64_t d = j < squares ? whole : 0; d < items; ++d) out[d * kKeyTile + j] = Form::item(at(j, d));
}

template <typename Form, typename C>
void load_tile(const Attention& a, int64_t s, int64_t h, int64_t start, int64_t n, Scratch& scratch) {
  for_each_run<C>(a, s, h, 0, start, start + n, nullptr, [&](const Run<C>& keys) {
    widen_keys<Form>(keys.rows, keys.count, a.head_size, scratch.k.data() + keys.offset);
  });
  for_each_run<C>(a, s, h, 1, start, start + n, nullptr, [&](const Run<C>& values) {
    for (int64_t i = 0; i < values.count; ++i)
      Form::widen_value(values.rows + i * a.head_size, a.head_size, values.offset + i, scratch.v.data());
  });
}

// Turn the scores of a query with a tile's keys into weights; the query sees the first `visible` keys. Return the
// factor by which earlier weights shrink.
inline float weigh(vec (&score)[kKeyGroups], int64_t visible, float& top, float& denominator) {
  float all[kKeyTile];
  std::memcpy(all, score, sizeof(all));
  std::fill(all + visible, all + kKeyTile, -INFINITY);
  vec best = splat(top), total = {};
  for (int j = 0; j < kKeyGroups; ++j) best = max(best, load(all + j * kLanes));
  const float before = top;
  top = largest(best);
  for (int j = 0; j < kKeyGroups; ++j) total += score[j] = exp_nonpositive(load(all + j * kLanes) - top);
  const float shrink = std::exp(before - top);
  denominator = denominator * shrink + sum(total);
  return shrink;
}

// Add weights [QUERIES, kKeyTile] x values of GROUPS * 16 features from `d` on to the outputs of queries from `i` on.
template <typename Form, int QUERIES, int GROUPS>
void add_products(const Running& r, int64_t i, int64_t d, const Factors& weights, const float (&shrink)[QUERIES]) {
  vec gain[QUERIES][GROUPS];
  Form::multiply({weights.left, r.v + d, weights.left_stride, r.size, weights.n}, gain);
  for (int q = 0; q < QUERIES; ++q)
    for (int j = 0; j < GROUPS; ++j) {
      float* out = r.out + (i + q) * r.out_stride + d + j * kLanes;
      store(out, load(out) * shrink[q] + gain[q][j]);
    }
}

// Attend with QUERIES queries from `i` on to a tile of keys, of which query i + q sees the first visible[q].
template <typename Form, int QUERIES>
void attend_tile(const Running& r, int64_t i, const int64_t* visible) {
  constexpr int64_t kItems = kKeyTile / Form::kNumbers;
  const int64_t items = r.size / Form::kNumbers;
  vec score[QUERIES][kKeyGroups];
  Form::multiply({r.q + i * items, r.k, items, kKeyTile, items}, score);
  alignas(64) float weight[QUERIES][kItems];
  float shrink[QUERIES];
  for (int q = 0; q < QUERIES; ++q) {
    shrink[q] = weigh(score[q], visible[q], r.top[i + q], r.denominator[i + q]);
    for (int j = 0; j < kKeyGroups; ++j) Form::pack(score[q][j], weight[q] + j * kLanes / Form::kNumbers);
  }
  const int64_t keys = *std::max_element(visible, visible + QUERIES);
  const Factors weights{weight[0], nullptr, kItems, 0, (keys + Form::kNumbers - 1) / Form::kNumbers};
  int64_t d = 0;
  for (; d + kFeatureGroups * kLanes <= r.size; d += kFeatureGroups * kLanes)
    add_products<Form, QUERIES, kFeatureGroups>(r, i, d, weights, shrink);
  for (; d < r.size; d += kLanes) add_products<Form, QUERIES, 1>(r, i, d, weights, shrink);
}

// Return the state of queries that have seen no keys.
template <typename Form>
Running begin(const Attention& a, int64_t t, int64_t h, int64_t count, Scratch& scratch) {
  const int64_t size = a.head_size, items = size / Form::kNumbers;
  const float scale = query_scale(a);
  scratch.q.resize(count * items);
  scratch.k.resize(items * kKeyTile);
  scratch.v.resize(kKeyTile / Form::kNumbers * size);
  scratch.top.assign(count, -INFINITY);
  scratch.denominator.assign(count, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    std::fill_n(a.output(t + i, h), size, 0.0f);
    for (int64_t d = 0; d < size; d += kLanes)
      Form::pack(load(a.query(t + i, h) + d) * scale, scratch.q.data() + i * items + d / Form::kNumbers);
  }
  return {scratch.q.data(), scratch.k.data(), scratch.v.data(), a.output(t, h),
          scratch.top.data(), scratch.denominator.data(), a.heads * size, size};
}

// Compute up to kQueryTile queries of one head. Tiles of keys and values stay in the processor's cache meanwhile.
// head_size must be a multiple of 16.
template <typename Form, typename C>
void attend_head(const Attention& a, int64_t s, int64_t h, int64_t first, int64_t count, Scratch& scratch) {
  const int64_t base = a.visible(s, first) - 1;  // position of query 0
  const Running r = begin<Form>(a, a.query_start[s] + first, h, count, scratch);
  for (int64_t start = 0; start < base + count; start += kKeyTile) {
    const int64_t tile = std::min(kKeyTile, base + count - start);
    load_tile<Form, C>(a, s, h, start, tile, scratch);
    const auto visible = [&](int64_t i) { return std::min(tile, base + i + 1 - start); };
    int64_t i = std::max<int64_t>(0, start - base);
    for (; i + 4 <= count; i += 4) {
      const int64_t seen[] = {visible(i), visible(i + 1), visible(i + 2), visible(i + 3)};
      attend_tile<Form, 4>(r, i, seen);
    }
    for (; i < count; ++i) {
      const int64_t seen[] = {visible(i)};
      attend_tile<Form, 1>(r, i, seen);
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < r.size; ++d) r.out[i * r.out_stride + d] /= r.denominator[i];
}

// Compute queries [first, first + count) of some heads of a sequence.
template <typename Form, typename C>
void attend_flash(const Attention& a, int64_t s, Heads heads, int64_t first, int64_t count, Scratch& scratch) {
  for (int64_t h = heads.first; h < heads.first + heads.count; ++h)
    attend_head<Form, C>(a, s, h, first, count, scratch);
}

}  // namespace opt_trt
