// Which kernel computes a product: the tactics, by their values in gemm/__init__.py.
#pragma once
#include "fixed.h"
#include "interleaved.h"
#include "pairs.h"
#include "words.h"

#include <algorithm>
#include <type_traits>

namespace opt_trt {

constexpr int64_t kPairs = 128, kWords = 192, kFixed16 = 256, kFixed8 = 512;

// Rows of stored elements that a tactic reads for every group of 16 outputs.
template <typename W>
int64_t stored_rows(int64_t tactic, int64_t k) {
  return tactic < kFixed16 ? stored_rows_of<W>(k) : num_groups(k) * kGroup / (kQuad * kSteps<W>);
}

#if defined(__AVX512F__)
template <typename W>
void run_pairs(const Gemm& g, int64_t tactic) {
  if (tactic == kPairs + 4) gemm_blocks<Bf16, W, 4, 4>(g);
  else gemm_blocks<Bf16, W, 8, 3>(g);
}

template <typename W>
void run_fixed(const Gemm& g, int64_t tactic) {
  switch (tactic) {
    case kFixed16 + 1: return gemm_fixed<W, 2, 1, 8>(g);
    case kFixed16 + 2: return gemm_fixed<W, 2, 2, 4>(g);
    case kFixed16 + 4: return gemm_fixed<W, 2, 4, 3>(g);
    case kFixed16 + 8: return gemm_fixed<W, 2, 8, 1>(g);
    case kFixed8 + 4: return gemm_fixed<W, 1, 4, 4>(g);
    default: return gemm_fixed<W, 1, 8, 3>(g);
  }
}
#endif

// So many tokens at once, or as many as registers hold sums of: six of AVX2, three of SSE2. A few groups of outputs go
// with them, of which each is a stream of memory.
template <typename W, int WANTED>
void gemm_rows(const Gemm& g) {
  constexpr int kRows = std::min(WANTED, kSums / kParts), kStreams = kRows == 1 ? 8 : 4;
  gemm<W, kRows, std::clamp(kSums / (kRows * kParts), 1, kStreams)>(g);
}

template <typename W>
void run_gemm(const Gemm& g, int64_t tactic) {
#if defined(__AVX512F__)
  if constexpr (kIntegers<W>)
    if (tactic >= kFixed16) return run_fixed<W>(g, tactic);
  if constexpr (std::is_same_v<W, fp16>) {
    if (tactic >= kWords) return gemm_blocks<Words, W, 4, 3>(g);
  } else if constexpr (!std::is_same_v<W, float>) {
    if (tactic >= kPairs) return run_pairs<W>(g, tactic);
  }
#endif
  switch (tactic) {
    case 1: return gemm_rows<W, 1>(g);
    case 2: return gemm_rows<W, 2>(g);
    case 4: return gemm_rows<W, 4>(g);
    case 12: return gemm_rows<W, 12>(g);
    default: return gemm_rows<W, 8>(g);
  }
}

}  // namespace opt_trt
