// Read memory and do nothing else: the bandwidth that kernels are compared with.
#pragma once
#include "../gemm/interleaved.h"

namespace opt_trt {

constexpr int kStreams = 8;  // fewer streams use less of a core's bandwidth, more do not use more

// Return the sum of 32-bit words modulo 2^32; `count` is a multiple of kStreams × 16 lanes.
inline uint32_t sum_words(const uint32_t* words, int64_t count) {
  const int64_t rows = count / (kStreams * kLanes);  // of each stream
  std::atomic<uint32_t> total = 0;
  for_each(rows / 1024 + 1, [&](int64_t part) {  // 64 KB of each stream, as in the panels of a product
    const int64_t first = part * 1024, last = first + 1024 < rows ? first + 1024 : rows;
    uvec sum[kStreams] = {};
    const uint32_t* panel = words + first * kStreams * kLanes;
    for (int64_t row = 0; row < last - first; ++row) {
      const int64_t ahead = bytes_ahead(row * sizeof(uvec), (last - first) * sizeof(uvec), kStreams);
      for (int s = 0; s < kStreams; ++s) {
        const uint32_t* p = panel + (s * (last - first) + row) * kLanes;
        __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead, 0, kSecondLevel);
        sum[s] += load(p);
      }
    }
    uint32_t of_part = 0;
    for (const uvec& lanes : sum)
      for (int64_t i = 0; i < kLanes; ++i) of_part += lanes[i];
    total += of_part;
  });
  return total;
}

}  // namespace opt_trt
