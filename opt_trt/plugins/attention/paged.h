// Causal attention over the paged KV cache: append the step's keys and values, then attend, both phases, ragged lengths.
//
// Cache of one layer: [blocks, keys | values, heads, tokens_per_block, head_size]. Work is one (sequence, head) pair and
// a run of its queries; sums are fp32 whatever the cache stores.
#pragma once
#include <algorithm>
#include <vector>

#include "../cpp/simd.h"

namespace opt_trt {

struct Attention {
  const float* qkv;               // [T, 3, H, D]
  void* cache;                    // [blocks, 2, H, P, D]
  const int64_t* slot_mapping;    // [T]
  const int32_t* query_start;     // [S + 1]
  const int32_t* kv_lens;         // [S]
  const int32_t* block_tables;    // [S, B]
  float* out;                     // [T, H, D]
  int64_t tokens, sequences, table_width, heads, head_size, block_tokens;

  const float* query(int64_t t, int64_t h) const { return qkv + (t * 3 * heads + h) * head_size; }
  // First element of a head's keys (kv = 0) or values (kv = 1) in a block.
  int64_t head_block(int64_t block, int64_t kv, int64_t h) const {
    return ((block * 2 + kv) * heads + h) * block_tokens * head_size;
  }
};

template <typename C>
void append(const Attention& a) {
  C* cache = static_cast<C*>(a.cache);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t block = a.slot_mapping[t] / a.block_tokens, offset = a.slot_mapping[t] % a.block_tokens;
    for (int64_t kv = 0; kv < 2; ++kv)
      for (int64_t h = 0; h < a.heads; ++h) {
        const float* from = a.qkv + ((t * 3 + 1 + kv) * a.heads + h) * a.head_size;
        C* to = cache + a.head_block(block, kv, h) + offset * a.head_size;
        for (int64_t d = 0; d < a.head_size; ++d) store_one(to + d, from[d]);
      }
  }
}

template <typename C>
float dot(const float* q, const C* k, int64_t size) {
  vec total[2] = {};
  int64_t d = 0;
  for (; d + 2 * kLanes <= size; d += 2 * kLanes) {
    total[0] += load(q + d) * load(k + d);
    total[1] += load(q + d + kLanes) * load(k + d + kLanes);
  }
  for (; d + kLanes <= size; d += kLanes) total[0] += load(q + d) * load(k + d);
  float result = sum(total[0] + total[1]);
  for (; d < size; ++d) result += q[d] * load_one(k + d);
  return result;
}

template <typename C>
void add_scaled(float* out, float weight, const C* v, int64_t size) {
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) store(out + d, load(out + d) + splat(weight) * load(v + d));
  for (; d < size; ++d) out[d] += weight * load_one(v + d);
}

struct Scratch {
  std::vector<float> q, scores, k, v, top, denominator;
};

// Unfused: the whole row of scores, its softmax, then the values. One query at a time.
template <typename C>
void attend_rows(const Attention& a, int64_t s, int64_t h, int64_t first, int64_t count, Scratch& scratch) {
  const C* cache = static_cast<const C*>(a.cache);
  const int32_t* table = a.block_tables + s * a.table_width;
  const float scale = 1.0f / std::sqrt(float(a.head_size));
  scratch.q.resize(a.head_size);
  for (int64_t i = first; i < first + count; ++i) {
    const int64_t t = a.query_start[s] + i;
    const int64_t length = a.kv_lens[s] - (a.query_start[s + 1] - a.query_start[s]) + i + 1;
    const float* query = a.query(t, h);
    for (int64_t d = 0; d < a.head_size; ++d) scratch.q[d] = query[d] * scale;
    scratch.scores.resize(length);
    float top = -INFINITY, denominator = 0.0f;
    for (int64_t j = 0; j < length; ++j) {
      const C* key = cache + a.head_block(table[j / a.block_tokens], 0, h) + j % a.block_tokens * a.head_size;
      scratch.scores[j] = dot(scratch.q.data(), key, a.head_size);
      top = std::max(top, scratch.scores[j]);
    }
    float* out = a.out + (t * a.heads + h) * a.head_size;
    std::fill(out, out + a.head_size, 0.0f);
    for (int64_t j = 0; j < length; ++j) {
      const float weight = std::exp(scratch.scores[j] - top);
      denominator += weight;
      const C* value = cache + a.head_block(table[j / a.block_tokens], 1, h) + j % a.block_tokens * a.head_size;
      add_scaled(out, weight, value, a.head_size);
    }
    for (int64_t d = 0; d < a.head_size; ++d) out[d] /= denominator;
  }
}

constexpr int64_t kKeyTile = 64;
constexpr int64_t kQueryTile = 64;

// Widen a tile of keys, transposed to [D, kKeyTile] so that a query meets 16 keys per instruction, and of values [n, D].
template <typename C>
void load_tile(const Attention& a, const int32_t* table, int64_t h, int64_t start, int64_t n, Scratch& scratch) {
  const C* cache = static_cast<const C*>(a.cache);
  for (int64_t j = 0; j < n; ++j) {
    const int64_t position = start + j;
    const int64_t offset = position % a.block_tokens * a.head_size;
    const C* key = cache + a.head_block(table[position / a.block_tokens], 0, h) + offset;
    const C* value = cache + a.head_block(table[position / a.block_tokens], 1, h) + offset;
    for (int64_t d = 0; d < a.head_size; ++d) {
      scratch.k[d * kKeyTile + j] = load_one(key + d);
      scratch.v[j * a.head_size + d] = load_one(value + d);
    }
  }
}

// e^x for x <= 0 in sixteen lanes, to 2 ulp: 2^n times a polynomial on the rest (Cephes' expf).
inline vec exp_nonpositive(vec x) {
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  const vec n = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f - 0.5f, ivec), vec);
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * x + c;
  p = p * x * x + x + 1.0f;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
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
    const float top = std::max(r.top[i + q], *std::max_element(weight[q], weight[q] + visible[q]));
    shrink[q] = std::exp(r.top[i + q] - top);
    vec total = {};
    for (int64_t j = 0; j < kKeyTile; j += kLanes) {
      const vec raw = load(weight[q] + j);
      const vec e = raw == splat(-INFINITY) ? vec{} : exp_nonpositive(raw - top);
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
  const int64_t base = a.kv_lens[s] - (a.query_start[s + 1] - a.query_start[s]) + first;  // position of query 0
  const int64_t size = a.head_size, t = a.query_start[s] + first;
  const float scale = 1.0f / std::sqrt(float(size));
  scratch.q.resize(count * size);
  scratch.k.resize(size * kKeyTile);
  scratch.v.resize(kKeyTile * size);
  scratch.top.assign(count, -INFINITY);
  scratch.denominator.assign(count, 0.0f);
  const Running r{scratch.q.data(), scratch.k.data(), scratch.v.data(), a.out + (t * a.heads + h) * size,
                  scratch.top.data(), scratch.denominator.data(), a.heads * size, size};
  for (int64_t i = 0; i < count; ++i) {
    std::fill(r.out + i * r.out_stride, r.out + i * r.out_stride + size, 0.0f);
    for (int64_t d = 0; d < size; ++d) scratch.q[i * size + d] = a.query(t + i, h)[d] * scale;
  }
  for (int64_t start = 0; start < base + count; start += kKeyTile) {
    const int64_t tile = std::min(kKeyTile, base + count - start);
    load_tile<C>(a, a.block_tables + s * a.table_width, h, start, tile, scratch);
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

struct Work { int64_t sequence, head, first, count; };

// Split every sequence's queries so that each piece is one thread's work; long pieces first, to balance the threads.
inline std::vector<Work> divide(const Attention& a) {
  std::vector<Work> work;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t queries = a.query_start[s + 1] - a.query_start[s];
    for (int64_t first = (queries - 1) / kQueryTile * kQueryTile; first >= 0; first -= kQueryTile)
      for (int64_t h = 0; h < a.heads; ++h) work.push_back({s, h, first, std::min(kQueryTile, queries - first)});
  }
  return work;
}

// `fused_from`: sequences with at least this many queries take the fused kernel (0: none do).
template <typename C>
void run_attention(const Attention& a, int64_t fused_from) {
  const std::vector<Work> work = divide(a);
#pragma omp parallel
  {
    Scratch scratch;
    append<C>(a);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); ++i) {
      const Work& w = work[i];
      const int64_t queries = a.query_start[w.sequence + 1] - a.query_start[w.sequence];
      const bool fused = fused_from > 0 && queries >= fused_from;
      (fused ? attend_flash<C> : attend_rows<C>)(a, w.sequence, w.head, w.first, w.count, scratch);
    }
  }
}

}  // namespace opt_trt
