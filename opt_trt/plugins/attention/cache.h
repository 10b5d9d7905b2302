// The paged KV cache as a step of attention sees it, and the append of the step's keys and values.
//
// Cache of one layer: [blocks, keys | values, heads, tokens_per_block, head_size].
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
  float* output(int64_t t, int64_t h) const { return out + (t * heads + h) * head_size; }
  int64_t queries(int64_t s) const { return query_start[s + 1] - query_start[s]; }
  // Tokens that query i of a sequence sees.
  int64_t visible(int64_t s, int64_t i) const { return kv_lens[s] - queries(s) + i + 1; }
  // First element of a head's keys (kv = 0) or values (kv = 1) in a block.
  int64_t head_block(int64_t block, int64_t kv, int64_t h) const {
    return ((block * 2 + kv) * heads + h) * block_tokens * head_size;
  }
};

// Memory of one thread, kept from one piece of its work to the next.
struct Scratch {
  std::vector<float> q, k, v, top, denominator;
};

inline void scale_query(const Attention& a, int64_t t, int64_t h, float* q) {
  const float scale = 1.0f / std::sqrt(float(a.head_size));
  const float* query = a.query(t, h);
  for (int64_t d = 0; d < a.head_size; ++d) q[d] = query[d] * scale;
}

// Calls `run(rows, count, offset)` for the keys (kv = 0) or values (kv = 1) of positions [first, last) of a sequence: as
// many rows [count, D] as lie side by side, the first of which is at position first + offset.
template <typename C, typename Run>
void for_each_run(const Attention& a, int64_t s, int64_t h, int64_t kv, int64_t first, int64_t last, Run run) {
  const C* cache = static_cast<const C*>(a.cache);
  const int32_t* table = a.block_tables + s * a.table_width;
  for (int64_t position = first; position < last;) {
    const int64_t start = position % a.block_tokens;
    const int64_t count = std::min(a.block_tokens - start, last - position);
    run(cache + a.head_block(table[position / a.block_tokens], kv, h) + start * a.head_size, count, position - first);
    position += count;
  }
}

template <typename C>
void append(const Attention& a) {
  C* cache = static_cast<C*>(a.cache);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t block = a.slot_mapping[t] / a.block_tokens, offset = a.slot_mapping[t] % a.block_tokens;
    for (int64_t kv = 0; kv < 2; ++kv)
      for (int64_t h = 0; h < a.heads; ++h) {
        const float* from = a.query(t, h) + (1 + kv) * a.heads * a.head_size;
        C* to = cache + a.head_block(block, kv, h) + offset * a.head_size;
        int64_t d = 0;
        for (; d + kLanes <= a.head_size; d += kLanes) store(to + d, load(from + d));
        for (; d < a.head_size; ++d) store_one(to + d, from[d]);
      }
  }
}

}  // namespace opt_trt
