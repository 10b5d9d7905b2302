// The tactics of attention: one row each, with the name that attention/cpu.py gives it. See gemm/tactics.h for numbers.
#pragma once
#include "floats.h"
#include "pairs.h"
#include "unfused.h"

namespace opt_trt {

struct AttentionTactic {
  const char* name;
  AttentionKernel attend;  // null where this cache, or this instruction set, has no such kernel
  int64_t size_divisor;    // of head_size
};

template <typename C>
constexpr AttentionTactic kAttentionTactics[] = {
    {"unfused", attend_unfused<C>, 1},
    {"flash", attend_flash<Floats, C>, kLanes},
    {"flash_pairs", flash_pairs_kernel<C>(), kLanes},
};

}  // namespace opt_trt
