// The operators a compiled program calls, registered through torch's stable ABI in a namespace that names this library.
//
// OPT_TRT_NAMESPACE carries a hash of these sources: two engines with different plugins can be open in one process, and
// a second copy of the same library is recognized before it is loaded (a duplicate registration kills the process).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <map>
#include <memory>

#include "../attention/paged.h"
#include "../collectives/mpi.h"
#include "../collectives/shared_memory.h"
#include "../gemm/tactics.h"
#include "recorder.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// Calls `run(W{})` with the floating type a tensor stores.
template <typename Run>
void dispatch(ScalarType type, Run run) {
  switch (type) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(opt_trt::fp16{});
    case ScalarType::BFloat16: return run(opt_trt::bf16{});
    default: STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16");
  }
}

// The same with a weight's type, which may be integers.
template <typename Run>
void dispatch_weight(ScalarType type, Run run) {
  switch (type) {
    case ScalarType::Char: return run(int8_t{});
    case ScalarType::Byte: return run(opt_trt::int4x2{});
    default: return dispatch(type, run);
  }
}

const float* optional_data(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const float*>(t->data_ptr()) : nullptr;
}

Tensor gemm(
    Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias, std::optional<Tensor> residual,
    bool relu, int64_t n, std::vector<int64_t> buckets, std::vector<int64_t> rows) {
  const opt_trt::Recorded recorded(opt_trt::kGemm);
  const int64_t tokens = x.size(0);
  const int64_t features = weight.scalar_type() == ScalarType::Byte ? (x.size(1) + 1) / 2 : x.size(1);
  STD_TORCH_CHECK(weight.size(1) == features, "gemm: x has ", x.size(1), " features, the weight ", weight.size(1));
  Tensor y = torch::stable::new_empty(x, {tokens, n});
  const opt_trt::Gemm g{
      static_cast<const float*>(x.data_ptr()), weight.data_ptr(), optional_data(scale), optional_data(bias),
      optional_data(residual), static_cast<float*>(y.data_ptr()), tokens, x.size(1), n, relu};
  size_t bucket = 0;
  while (bucket < buckets.size() && tokens > buckets[bucket]) ++bucket;
  dispatch_weight(weight.scalar_type(), [&](auto w) { opt_trt::run_gemm<decltype(w)>(g, rows[bucket]); });
  return y;
}

Tensor attention(
    Tensor qkv, Tensor cache, Tensor slot_mapping, Tensor query_start, Tensor kv_lens, Tensor block_tables,
    int64_t fused_from) {
  const opt_trt::Recorded recorded(opt_trt::kAttention);
  const int64_t heads = cache.size(2), head_size = cache.size(4);
  STD_TORCH_CHECK(qkv.size(1) == 3 * heads * head_size, "attention: qkv has ", qkv.size(1), " features");
  Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), heads * head_size});
  const opt_trt::Attention a{
      static_cast<const float*>(qkv.data_ptr()), cache.data_ptr(),
      static_cast<const int64_t*>(slot_mapping.data_ptr()), static_cast<const int32_t*>(query_start.data_ptr()),
      static_cast<const int32_t*>(kv_lens.data_ptr()), static_cast<const int32_t*>(block_tables.data_ptr()),
      static_cast<float*>(out.data_ptr()), qkv.size(0), kv_lens.size(0), block_tables.size(1), heads, head_size,
      cache.size(3)};
  dispatch(cache.scalar_type(), [&](auto c) { opt_trt::run_attention<decltype(c)>(a, fused_from); });
  return out;
}

// From now on `events` [N, 3] is told what runs, or no more; how many events were recorded before.
int64_t record(Tensor events, bool on) {
  const int64_t found = opt_trt::recorder.count;
  opt_trt::recorder = {};
  if (on) opt_trt::recorder = {static_cast<int64_t(*)[3]>(events.data_ptr()), events.size(0)};
  return found;
}

// The tensor-parallel groups this process has joined, by their size: programs know no more of them. Never destroyed, for
// programs may run until the process ends.
std::map<int64_t, std::unique_ptr<opt_trt::Group>>& groups() {
  static auto& joined = *new std::map<int64_t, std::unique_ptr<opt_trt::Group>>;
  return joined;
}

opt_trt::Group& group_of(int64_t ranks) {
  const auto found = groups().find(ranks);
  STD_TORCH_CHECK(found != groups().end(), "no group of ", ranks, " tensor-parallel ranks was joined");
  return *found->second;
}

// `memory` is mapped by all ranks and stays with the group.
int64_t join_shared_memory(Tensor memory, int64_t ranks, int64_t rank, double timeout_s, int64_t spins) {
  const Tensor& kept = *new Tensor(memory);
  groups()[ranks] = std::make_unique<opt_trt::SharedMemoryGroup>(
      kept.data_ptr(), kept.numel(), ranks, rank, timeout_s, spins);
  return ranks;
}

// `mpi` holds the addresses of MPI_Iallgather and MPI_Test and the handles of the communicator and of MPI_FLOAT.
int64_t join_mpi(Tensor mpi, int64_t ranks, double timeout_s) {
  const auto* values = static_cast<const int64_t*>(mpi.data_ptr());
  groups()[ranks] = std::make_unique<opt_trt::MpiGroup>(
      opt_trt::Mpi{
          reinterpret_cast<decltype(opt_trt::Mpi::iallgather)>(values[0]),
          reinterpret_cast<decltype(opt_trt::Mpi::test)>(values[1]), values[2], values[3]},
      ranks, timeout_s);
  return ranks;
}

Tensor all_reduce(Tensor x, int64_t ranks) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  group_of(ranks).all_reduce(static_cast<const float*>(x.data_ptr()), static_cast<float*>(out.data_ptr()), x.numel());
  return out;
}

Tensor all_gather(Tensor x, int64_t ranks, int64_t features) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), features});
  group_of(ranks).all_gather(
      static_cast<const float*>(x.data_ptr()), static_cast<float*>(out.data_ptr()), x.size(0), x.size(1), features);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(OPT_TRT_NAMESPACE, m) {
  m.def(
      "gemm(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, bool relu, int n, int[] buckets,"
      " int[] rows) -> Tensor");
  m.def(
      "attention(Tensor qkv, Tensor(a!) cache, Tensor slot_mapping, Tensor query_start, Tensor kv_lens,"
      " Tensor block_tables, int fused_from) -> Tensor");
  m.def("record(Tensor events, bool on) -> int");
  m.def("join_shared_memory(Tensor memory, int ranks, int rank, float timeout_s, int spins) -> int");
  m.def("join_mpi(Tensor mpi, int ranks, float timeout_s) -> int");
  m.def("all_reduce(Tensor x, int ranks) -> Tensor");
  m.def("all_gather(Tensor x, int ranks, int features) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(OPT_TRT_NAMESPACE, CPU, m) {
  m.impl("gemm", TORCH_BOX(&gemm));
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("record", TORCH_BOX(&record));
  m.impl("join_shared_memory", TORCH_BOX(&join_shared_memory));
  m.impl("join_mpi", TORCH_BOX(&join_mpi));
  m.impl("all_reduce", TORCH_BOX(&all_reduce));
  m.impl("all_gather", TORCH_BOX(&all_gather));
}
