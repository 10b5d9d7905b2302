// The operators that compiled programs call, registered through torch's stable ABI in a namespace that names this
// library.
//
// OPT_TRT_NAMESPACE contains a hash of these sources. So two engines with different plugins can be open in one process,
// and a second copy of a library is recognized before it is loaded (a duplicate registration kills the process).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "../attention/paged.h"
#include "../collectives/mpi.h"
#include "../collectives/shared_memory.h"
#include "../gemm/tactics.h"
#include "../rows/layer_norm.h"
#include "recorder.h"
#include "stream.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// Call `run(W{})` with the floating type that a tensor stores.
template <typename Run>
void dispatch(ScalarType type, Run run) {
  switch (type) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(opt_trt::fp16{});
    case ScalarType::BFloat16: return run(opt_trt::bf16{});
    default: STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16");
  }
}

// Call `run(W{})` with the type that a weight stores, which may be integers.
template <typename Run>
void dispatch_weight(ScalarType type, Run run) {
  switch (type) {
    case ScalarType::Char: return run(int8_t{});
    case ScalarType::Byte: return run(opt_trt::int4x2{});
    default: return dispatch(type, run);
  }
}

// A tensor, read through the C interface, without dispatcher and reference counts.
struct View {
  AtenTensorHandle handle;

  template <typename T>
  T* data() const {
    void* p;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &p));
    return static_cast<T*>(p);
  }
  int64_t size(int64_t dim) const {
    int64_t n;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_size(handle, dim, &n));
    return n;
  }
  int32_t dtype() const {
    int32_t type;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &type));
    return type;
  }
  ScalarType type() const { return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype())); }
};

const float* optional_data(const AtenTensorHandle* t) { return t ? View{*t}.data<const float>() : nullptr; }

// Allocate fp32 [rows, columns], uninitialized.
AtenTensorHandle new_matrix(int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle));
  return handle;
}

// Return the number of a tactic, which is that of its row.
template <typename Row, size_t N>
int64_t number_of(const Row (&table)[N], const std::string& name) {
  for (size_t i = 0; i < N; ++i)
    if (name == table[i].name) return int64_t(i);
  STD_TORCH_CHECK(false, "the plugin library has no tactic ", name.c_str());
}

template <typename Row, size_t N>
const Row& row_of(const Row (&table)[N], int64_t number) {
  STD_TORCH_CHECK(0 <= number && number < int64_t(N), "expected a tactic's number below ", N, ", found ", number);
  return table[number];
}

struct GemmTensors { View x, weight; const AtenTensorHandle *scale, *bias, *residual; };

AtenTensorHandle run_gemm(
    const GemmTensors& t, bool relu, int64_t n, std::span<const int64_t> buckets,
    std::span<const int64_t> tactics) {
  const opt_trt::Recorded recorded(opt_trt::kGemm);
  const int64_t tokens = t.x.size(0), k = t.x.size(1);
  size_t bucket = 0;
  while (bucket < buckets.size() && tokens > buckets[bucket]) ++bucket;
  AtenTensorHandle y = nullptr;
  dispatch_weight(t.weight.type(), [&](auto w) {
    const opt_trt::GemmTactic& tactic = row_of(opt_trt::kGemmTactics<decltype(w)>, tactics[bucket]);
    STD_TORCH_CHECK(tactic.run, "gemm: ", tactic.name, " has no kernel for weights of this type");
    const int64_t expected = tactic.stored_rows(k), found = t.weight.size(1);
    STD_TORCH_CHECK(found == expected, "gemm: ", k, " features take ", expected, " rows of weights, found ", found);
    y = new_matrix(tokens, n);
    const opt_trt::Gemm g{
        t.x.data<const float>(), t.weight.data<void>(), optional_data(t.scale), optional_data(t.bias),
        optional_data(t.residual), View{y}.data<float>(), tokens, k, n, relu};
    tactic.run(g);
  });
  return y;
}

struct AttentionTensors { View qkv, cache, slot_mapping, query_start, kv_lens, block_tables; };

AtenTensorHandle run_attention(const AttentionTensors& t, int64_t number) {
  const opt_trt::Recorded recorded(opt_trt::kAttention);
  const int64_t tokens = t.qkv.size(0), heads = t.cache.size(2), head_size = t.cache.size(4);
  STD_TORCH_CHECK(t.qkv.size(1) == 3 * heads * head_size, "attention: qkv has ", t.qkv.size(1), " features");
  const AtenTensorHandle out = new_matrix(tokens, heads * head_size);
  const opt_trt::Attention a{
      t.qkv.data<const float>(), t.cache.data<void>(), t.slot_mapping.data<const int64_t>(),
      t.query_start.data<const int32_t>(), t.kv_lens.data<const int32_t>(), t.block_tables.data<const int32_t>(),
      View{out}.data<float>(), tokens, t.kv_lens.size(0), t.block_tables.size(1), heads, head_size, t.cache.size(3)};
  dispatch(t.cache.type(), [&](auto c) {
    const opt_trt::AttentionTactic& tactic = row_of(opt_trt::kAttentionTactics<decltype(c)>, number);
    STD_TORCH_CHECK(tactic.attend, "attention: ", tactic.name, " has no kernel for a cache of this type");
    STD_TORCH_CHECK(head_size % tactic.size_divisor == 0, "attention: ", tactic.name, " of heads of ", head_size);
    opt_trt::run_attention<decltype(c)>(a, tactic.attend);
  });
  return out;
}

AtenTensorHandle run_layer_norm(View x, View weight, View bias, double epsilon) {
  const int64_t tokens = x.size(0), features = x.size(1);
  const AtenTensorHandle y = new_matrix(tokens, features);
  opt_trt::run_layer_norm(
      {x.data<const float>(), weight.data<const float>(), bias.data<const float>(), View{y}.data<float>(), tokens,
       features, float(epsilon)});
  return y;
}

// The operators that Python calls. Compiled programs call the functions at the end of this file.
Tensor gemm(
    Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias, std::optional<Tensor> residual,
    bool relu, int64_t n, std::vector<int64_t> buckets, std::vector<int64_t> tactics) {
  const auto handle = [](const std::optional<Tensor>& t) { return t ? t->get() : nullptr; };
  const AtenTensorHandle some[] = {handle(scale), handle(bias), handle(residual)};
  const auto given = [&](int i) { return some[i] ? &some[i] : nullptr; };
  return Tensor(run_gemm({{x.get()}, {weight.get()}, given(0), given(1), given(2)}, relu, n, buckets, tactics));
}

Tensor attention(
    Tensor qkv, Tensor cache, Tensor slot_mapping, Tensor query_start, Tensor kv_lens, Tensor block_tables,
    int64_t tactic) {
  return Tensor(run_attention(
      {{qkv.get()}, {cache.get()}, {slot_mapping.get()}, {query_start.get()}, {kv_lens.get()}, {block_tables.get()}},
      tactic));
}

Tensor layer_norm(Tensor x, Tensor weight, Tensor bias, double epsilon) {
  return Tensor(run_layer_norm({x.get()}, {weight.get()}, {bias.get()}, epsilon));
}

// Return the numbers that `gemm` and `attention` take for tactics; the tables of all types have the same names.
int64_t gemm_tactic(std::string name) { return number_of(opt_trt::kGemmTactics<float>, name); }
int64_t attention_tactic(std::string name) { return number_of(opt_trt::kAttentionTactics<float>, name); }

// Start to record what runs in `events` [N, 3], or stop. Return the number of events that were recorded before.
int64_t record(Tensor events, bool on) {
  const int64_t found = opt_trt::recorder.count;
  opt_trt::recorder = {};
  if (on) opt_trt::recorder = {static_cast<int64_t(*)[3]>(events.data_ptr()), events.size(0)};
  return found;
}

// Return how many threads of the team stay away, because other programs use their cores.
int64_t resting_threads() { return opt_trt::Team::of_process().resting(); }

// Return the sum of all words of fp32 storage, as integers modulo 2^32.
int64_t sum_words(Tensor data) {
  constexpr int64_t unit = opt_trt::kStreams * opt_trt::kLanes;
  STD_TORCH_CHECK(data.numel() % unit == 0, "sum_words: expected a multiple of ", unit, " words, found ", data.numel());
  return opt_trt::sum_words(static_cast<const uint32_t*>(data.data_ptr()), data.numel());
}

// The tensor-parallel groups that this process has joined, by their size, which is all that programs know of them. They
// are never destroyed, because programs may run until the process ends.
std::map<int64_t, std::unique_ptr<opt_trt::Group>>& groups() {
  static auto& joined = *new std::map<int64_t, std::unique_ptr<opt_trt::Group>>;
  return joined;
}

opt_trt::Group& group_of(int64_t ranks) {
  const auto found = groups().find(ranks);
  STD_TORCH_CHECK(found != groups().end(), "no group of ", ranks, " tensor-parallel ranks was joined");
  return *found->second;
}

// Join a group of ranks that all map `memory`, which the group keeps.
int64_t join_shared_memory(Tensor memory, int64_t ranks, int64_t rank, double timeout_s, int64_t spins) {
  const Tensor& kept = *new Tensor(memory);
  groups()[ranks] = std::make_unique<opt_trt::SharedMemoryGroup>(
      kept.data_ptr(), kept.numel(), ranks, rank, timeout_s, spins);
  return ranks;
}

// Join a group by MPI: `mpi` has the addresses of MPI_Iallgather and MPI_Test, the communicator and MPI_FLOAT.
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
      " int[] tactics) -> Tensor");
  m.def(
      "attention(Tensor qkv, Tensor(a!) cache, Tensor slot_mapping, Tensor query_start, Tensor kv_lens,"
      " Tensor block_tables, int tactic) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon) -> Tensor");
  m.def("gemm_tactic(str name) -> int");
  m.def("attention_tactic(str name) -> int");
  m.def("record(Tensor events, bool on) -> int");
  m.def("resting_threads() -> int");
  m.def("sum_words(Tensor data) -> int");
  m.def("join_shared_memory(Tensor memory, int ranks, int rank, float timeout_s, int spins) -> int");
  m.def("join_mpi(Tensor mpi, int ranks, float timeout_s) -> int");
  m.def("all_reduce(Tensor x, int ranks) -> Tensor");
  m.def("all_gather(Tensor x, int ranks, int features) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(OPT_TRT_NAMESPACE, CPU, m) {
  m.impl("gemm", TORCH_BOX(&gemm));
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("record", TORCH_BOX(&record));
  m.impl("sum_words", TORCH_BOX(&sum_words));
  m.impl("join_shared_memory", TORCH_BOX(&join_shared_memory));
  m.impl("join_mpi", TORCH_BOX(&join_mpi));
  m.impl("all_reduce", TORCH_BOX(&all_reduce));
  m.impl("all_gather", TORCH_BOX(&all_gather));
}

STABLE_TORCH_LIBRARY_IMPL(OPT_TRT_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("gemm_tactic", TORCH_BOX(&gemm_tactic));
  m.impl("attention_tactic", TORCH_BOX(&attention_tactic));
  m.impl("resting_threads", TORCH_BOX(&resting_threads));
}

// The functions that compiled programs call by name, without the dispatcher, which takes 4 µs a call. Their names
// contain the hash too; library.py declares them to the programs.
#define OPT_TRT_JOIN(a, b) a##b
#define OPT_TRT_NAME(space, function) OPT_TRT_JOIN(space, function)
#define OPT_TRT_EXPORT(function) \
  extern "C" [[gnu::visibility("default")]] AOTITorchError OPT_TRT_NAME(OPT_TRT_NAMESPACE, function)

namespace {

template <typename Run>
AOTITorchError as_error_code(Run run) {
  try {
    run();
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "opt_trt: %s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}

}  // namespace

OPT_TRT_EXPORT(_gemm)(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* scale, AtenTensorHandle* bias,
    AtenTensorHandle* residual, int32_t relu, int64_t n, const int64_t* buckets, int64_t num_buckets,
    const int64_t* tactics, int64_t num_tactics, AtenTensorHandle* y) {
  return as_error_code([&] {
    *y = run_gemm(
        {{x}, {weight}, scale, bias, residual}, relu, n, {buckets, size_t(num_buckets)},
        {tactics, size_t(num_tactics)});
  });
}

OPT_TRT_EXPORT(_attention)(
    AtenTensorHandle qkv, AtenTensorHandle cache, AtenTensorHandle slot_mapping, AtenTensorHandle query_start,
    AtenTensorHandle kv_lens, AtenTensorHandle block_tables, int64_t tactic, AtenTensorHandle* out) {
  return as_error_code([&] {
    *out = run_attention({{qkv}, {cache}, {slot_mapping}, {query_start}, {kv_lens}, {block_tables}}, tactic);
  });
}

OPT_TRT_EXPORT(_layer_norm)(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle bias, double epsilon, AtenTensorHandle* y) {
  return as_error_code([&] { *y = run_layer_norm({x}, {weight}, {bias}, epsilon); });
}
