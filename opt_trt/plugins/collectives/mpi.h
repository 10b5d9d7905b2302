// Ranks of several nodes: MPI gathers the parts, and every rank sums them in rank order.
//
// The process has loaded MPI already and passes the addresses of its functions and handles, so compiling and loading
// this library needs no MPI. Handles are pointers in some MPIs and integers in others; both fit into an intptr_t.
#pragma once
#include "group.h"

namespace opt_trt {

constexpr int64_t kMpiChunk = 65536;  // floats

struct Mpi {
  int (*iallgather)(const void*, int, intptr_t, void*, int, intptr_t, intptr_t, intptr_t*);
  int (*test)(intptr_t*, int*, void*);
  intptr_t communicator, float_type;
};

class MpiGroup : public Group {
 public:
  MpiGroup(const Mpi& mpi, int64_t ranks, double timeout_s)
      : Group(ranks, kMpiChunk, timeout_s), mpi_(mpi), gathered_(ranks * kMpiChunk) {}

 private:
  std::vector<const float*> exchange(const float* x, int64_t count) override {
    intptr_t request = 0;
    const int n = static_cast<int>(count);
    check(mpi_.iallgather(
        x, n, mpi_.float_type, gathered_.data(), n, mpi_.float_type, mpi_.communicator, &request));
    wait(&request);
    std::vector<const float*> parts(ranks_);
    for (int64_t r = 0; r < ranks_; ++r) parts[r] = gathered_.data() + r * count;
    return parts;
  }

  void wait(intptr_t* request) {
    alignas(16) char status[256];
    const Deadline deadline(timeout_s_);
    for (int done = 0;;) {
      check(mpi_.test(request, &done, status));
      if (done) return;
      if (deadline.passed()) lost("ranks did not come within the time given");
      sched_yield();
    }
  }

  void check(int error) const {
    if (error) lost("exchange failed: MPI error " + std::to_string(error));
  }

  const Mpi mpi_;
  std::vector<float> gathered_;
};

}  // namespace opt_trt
