// Causal attention over the paged KV cache, for both phases and ragged lengths: how threads divide the work.
//
// A piece of work is some heads of a sequence with a run of its queries, or with a part of the keys of a single query.
// Sums are fp32, whatever type the cache stores.
#pragma once
#include "../cpu/threads.h"
#include "tactics.h"

namespace opt_trt {

constexpr int64_t kAppendedAtOnce = 16;  // tokens
constexpr int64_t kPiecesPerThread = 2;  // of work, at least, so that threads share it evenly

struct Work {
  int64_t sequence;
  Heads heads;
  int64_t first, count;  // queries
  int64_t part;          // of the keys of a single query; -1 for all keys
};

// Results of parts of keys before they are merged: each has a top, a denominator and a sum [D].
struct Parts {
  int64_t size, count = 0;
  std::vector<int64_t> first;  // part of each sequence, whose parts go head by head; -1 if its keys are not divided
  std::vector<float> memory;

  Partial at(int64_t index) {
    float* p = memory.data() + index * (size + 2);
    return {p + 2, p[0], p[1]};
  }
  void keep(int64_t index, const Partial& part) {
    memory[index * (size + 2)] = part.top;
    memory[index * (size + 2) + 1] = part.denominator;
  }
};

inline int64_t num_parts(const Attention& a, int64_t s) { return (a.kv_lens[s] + kPart - 1) / kPart; }

// Divide every sequence's queries into pieces for the threads, long pieces first to balance them. A piece of a single
// query has several heads. If that leaves too few pieces, its keys are divided too.
inline std::vector<Work> divide(const Attention& a, Parts& parts) {
  const int64_t rows = a.sequences * a.heads, wanted = kPiecesPerThread * num_threads();
  const int64_t most = std::clamp<int64_t>(rows / wanted, 1, kHeads), groups = (a.heads + most - 1) / most;
  const int64_t group = (a.heads + groups - 1) / groups;  // heads of a piece, as equal as possible
  std::vector<Work> work;
  work.reserve(a.sequences * groups);
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t queries = a.queries(s), heads_at_once = queries == 1 ? group : 1;
    const bool parted = rows < wanted && queries == 1 && num_parts(a, s) > 1;
    parts.first.push_back(parted ? parts.count : -1);
    parts.count += parted ? a.heads * num_parts(a, s) : 0;
    for (int64_t first = (queries - 1) / kQueryTile * kQueryTile; first >= 0; first -= kQueryTile)
      for (int64_t h = 0; h < a.heads; h += heads_at_once)
        for (int64_t part = parted ? 0 : -1; part < (parted ? num_parts(a, s) : 0); ++part)
          work.push_back(
              {s, {h, std::min(heads_at_once, a.heads - h)}, first, std::min(kQueryTile, queries - first), part});
  }
  parts.memory.resize(parts.count * (parts.size + 2));
  return work;
}

// Attend with a single query to a part of its keys, for one head.
template <typename C>
void attend_one_part(const Attention& a, const Work& w, Parts& parts, Scratch& scratch) {
  scratch.q.resize(a.head_size);
  scale_query(a, a.query_start[w.sequence], w.heads.first, scratch.q.data());
  const int64_t index = parts.first[w.sequence] + w.heads.first * num_parts(a, w.sequence) + w.part;
  const int64_t last = std::min((w.part + 1) * kPart, int64_t(a.kv_lens[w.sequence]));
  Partial part = parts.at(index);
  attend_part<C>(a, w.sequence, w.heads, scratch.q.data(), w.part * kPart, last, &part);
  parts.keep(index, part);
}

// Merge the parts in the order of keys, as a thread that computes all of them does.
inline void merge_parts(const Attention& a, int64_t s, int64_t h, Parts& parts) {
  const int64_t first = parts.first[s] + h * num_parts(a, s);
  Partial whole = parts.at(first);
  for (int64_t p = 1; p < num_parts(a, s); ++p) merge(whole, parts.at(first + p), a.head_size);
  finish(whole, a.output(a.query_start[s], h), a.head_size);
}

// Append the newest key and value where every sequence has one query. The thread that reads them does so: none waits.
template <typename C>
void append_newest(const Attention& a, const Work& w) {
  if (w.part < 0 || w.part == num_parts(a, w.sequence) - 1)
    append<C>(a, w.sequence, w.heads.first, w.heads.first + w.heads.count);
}

// Append the step's keys and values, then attend; `several` computes sequences that have several queries.
template <typename C>
void run_attention(const Attention& a, AttentionKernel several) {
  Parts parts{a.head_size};
  const std::vector<Work> work = divide(a, parts);
  const bool generation = a.tokens == a.sequences;
  if (!generation) for_each(a.tokens, kAppendedAtOnce, [&](int64_t t) { append<C>(a, t, 0, a.heads); });
  for_each(int64_t(work.size()), [&](int64_t i) {
    static thread_local Scratch scratch;
    const Work& w = work[i];
    if (generation) append_newest<C>(a, w);
    const AttentionKernel attend = a.queries(w.sequence) == 1 ? attend_unfused<C> : several;
    if (w.part >= 0) attend_one_part<C>(a, w, parts, scratch);
    else attend(a, w.sequence, w.heads, w.first, w.count, scratch);
  });
  if (parts.count)
    for_each(a.sequences * a.heads, a.heads, [&](int64_t i) {
      if (parts.first[i / a.heads] >= 0) merge_parts(a, i / a.heads, i % a.heads, parts);
    });
}

}  // namespace opt_trt
