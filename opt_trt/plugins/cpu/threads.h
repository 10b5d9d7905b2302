// Loops of kernels over the threads that torch uses, so that there is one number of threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "team.h"

namespace opt_trt {

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

// Call work(i) for all i < count. A thread takes `several` neighbours at a time, so that a piece takes a microsecond.
template <typename Work>
void for_each(int64_t count, int64_t several, const Work& work) {
  Team::of_process().for_each((count + several - 1) / several, num_threads(), [&](int64_t piece) {
    for (int64_t i = piece * several; i < std::min(count, (piece + 1) * several); ++i) work(i);
  });
}

template <typename Work>
void for_each(int64_t count, const Work& work) { for_each(count, 1, work); }

}  // namespace opt_trt
