// Both ways to sum over ranks, called as often as asked from C++: what a call costs without Python and torch around it.
// `ranks.py` compiles this, and gives MPI's function and handles, which come from the process as in `mpi.h`.
#include <chrono>

#include "../opt_trt/plugins/collectives/shared_memory.h"

namespace {

template <typename Run>
double microseconds_each(int64_t calls, Run run) {
  const auto started = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < calls; ++i) run();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - started).count() / calls;
}

}  // namespace

extern "C" {

void* join(void* memory, int64_t bytes, int64_t ranks, int64_t rank, double timeout_s, int64_t spins) {
  return new opt_trt::SharedMemoryGroup(memory, bytes, ranks, rank, timeout_s, spins);
}

double time_ours(void* joined, const float* x, float* total, int64_t count, int64_t calls) {
  auto* group = static_cast<opt_trt::Group*>(static_cast<opt_trt::SharedMemoryGroup*>(joined));
  return microseconds_each(calls, [&] { group->all_reduce(x, total, count); });
}

struct Mpi {
  int (*allreduce)(const void*, void*, int, intptr_t, intptr_t, intptr_t);
  intptr_t type, operation, communicator;
};

double time_mpi(const Mpi* mpi, const float* x, float* total, int64_t count, int64_t calls) {
  return microseconds_each(calls, [&] {
    mpi->allreduce(x, total, static_cast<int>(count), mpi->type, mpi->operation, mpi->communicator);
  });
}
}
