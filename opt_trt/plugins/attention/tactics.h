// The tactics of attention: one row each, with the name that attention/cpu.py gives it. For numbers see gemm/tactics.h.
#pragma once
#include "floats.h"
#include "pairs.h"
#include "unfused.h"

namespace opt_trt {

struct AttentionTactic {
  const char* name;
  AttentionKernel attend;  // null if there is none for a cache of C or for this instruction set
  int64_t size_divisor;    // head_size must be a multiple of it
};

template <typename C>
constexpr AttentionTactic kAttentionTactics[] = {
    {"unfused", attend_unfused<C>, 1},
    {"flash", attend_flash<Floats, C>, kLanes},
    {"flash_pairs", flash_pairs_kernel<C>(), kLanes},
};

}  // namespace opt_trt
