// The paged KV cache of a layer in one step of attention, and how the step's keys and values are appended to it.
//
// The cache is [blocks, keys | values, heads, tokens_per_block, head_size].
#pragma once
#include <algorithm>
#include <vector>

#include "../cpu/simd.h"

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
  float* output(int64_t t, int64_t h) const { return out + (t * heads + h) * head_size; }
  int64_t queries(int64_t s) const { return query_start[s + 1] - query_start[s]; }
  // Return the number of tokens that query i of a sequence attends to.
  int64_t visible(int64_t s, int64_t i) const { return kv_lens[s] - queries(s) + i + 1; }
  // Return the index of the first element of a head's keys (kv = 0) or values (kv = 1) in a block.
  int64_t head_block(int64_t block, int64_t kv, int64_t h) const {
    return ((block * 2 + kv) * heads + h) * block_tokens * head_size;
  }
};

struct Heads { int64_t first, count; };

constexpr int64_t kRun = 32;  // tokens; their keys of a few heads fit into the second-level cache several times

// Memory of one thread, reused from one piece of its work to the next.
struct Scratch {
  std::vector<float> q, k, v, top, denominator;
};

// A kernel computes queries [first, first + count) of some heads of sequence s.
typedef void (*AttentionKernel)(
    const Attention& a, int64_t s, Heads heads, int64_t first, int64_t count, Scratch& scratch);

inline float query_scale(const Attention& a) { return 1.0f / std::sqrt(float(a.head_size)); }

inline void scale_query(const Attention& a, int64_t t, int64_t h, float* q) {
  const float scale = query_scale(a);
  const float* query = a.query(t, h);
  for (int64_t d = 0; d < a.head_size; ++d) q[d] = query[d] * scale;
}

// Rows [count, D] of keys or values that are neighbours in the cache. The first is at position first + offset of a
// sequence. `next` are the rows that are read after them.
template <typename C>
struct Run {
  const C *rows, *next;
  int64_t count, offset;
};

// Return the address of a head's key (kv = 0) or value (kv = 1) at a position.
template <typename C>
const C* row_at(const Attention& a, int64_t s, int64_t h, int64_t kv, int64_t position) {
  const int64_t block = a.block_tables[s * a.table_width + position / a.block_tokens];
  return static_cast<const C*>(a.cache) + a.head_block(block, kv, h) + position % a.block_tokens * a.head_size;
}

// Call `use(run)` for keys or values at positions [first, last) of a sequence, in runs of up to kRun of one block. The
// last run is followed by `next`.
template <typename C, typename Use>
void for_each_run(
    const Attention& a, int64_t s, int64_t h, int64_t kv, int64_t first, int64_t last, const C* next, Use use) {
  for (int64_t position = first; position < last;) {
    const int64_t count = std::min({a.block_tokens - position % a.block_tokens, last - position, kRun});
    const int64_t end = position + count;
    const C* then = end < last ? row_at<C>(a, s, h, kv, end) : next;
    use(Run<C>{row_at<C>(a, s, h, kv, position), then, count, position - first});
    position = end;
  }
}

// Append heads [first, last) of a token's keys and values to the cache.
template <typename C>
void append(const Attention& a, int64_t t, int64_t first, int64_t last) {
  C* cache = static_cast<C*>(a.cache);
  const int64_t block = a.slot_mapping[t] / a.block_tokens, offset = a.slot_mapping[t] % a.block_tokens;
  for (int64_t kv = 0; kv < 2; ++kv)
    for (int64_t h = first; h < last; ++h) {
      const float* from = a.query(t, h) + (1 + kv) * a.heads * a.head_size;
      C* to = cache + a.head_block(block, kv, h) + offset * a.head_size;
      int64_t d = 0;
      for (; d + kLanes <= a.head_size; d += kLanes) store(to + d, load(from + d));
      for (; d < a.head_size; ++d) store_one(to + d, from[d]);
    }
}

}  // namespace opt_trt
