// Which kernel computes a product: the tactics, by their values in gemm/__init__.py.
#pragma once
#include "interleaved.h"
#include "pairs.h"

namespace opt_trt {

constexpr int64_t kPairs = 128;

template <typename W>
void run_gemm(const Gemm& g, int64_t tactic) {
  switch (tactic) {
    case 1: return gemm<W, 1, 4>(g);
    case 2: return gemm<W, 2, 4>(g);
    case 4: return gemm<W, 4, 4>(g);
    case 12: return gemm<W, 12, 2>(g);
#if defined(__AVX512F__)
    case kPairs + 4:
      if constexpr (kFewBits<W>) return gemm_pairs<W, 4, 4>(g);
      [[fallthrough]];
    case kPairs + 8:
      if constexpr (kFewBits<W>) return gemm_pairs<W, 8, 3>(g);
      [[fallthrough]];
#endif
    default: return gemm<W, 8, 3>(g);
  }
}

}  // namespace opt_trt
