// The product of interleaved.h by instructions that multiply pairs: two neighbouring features of 16 bits in a lane.
//
// Weights become pairs once for all tokens. A block is the weights of 128 features and one panel of outputs; it stays
// in the first-level cache while all tokens are multiplied. Sums are added in the order of K, whatever the number of
// tokens. The template argument Form chooses what the 16 bits are: bf16 (pairs.h) or integers (words.h).
#pragma once
#include "integers.h"

namespace opt_trt {

typedef uint32_t pair;  // the earlier feature in the low bits

constexpr int64_t kBlock = kGroup;  // features, so that a block of a token has one scale
constexpr int64_t kBlockPairs = kBlock / 2;
constexpr int64_t kTokensAtOnce = 1024;  // their sums for a panel fit into the second-level cache
constexpr int kFirstLevel = 3;           // prefetch hint: widening would wait for weights in the second-level cache

// One block of all tokens.
struct TokenPairs {
  pair* pairs;    // [tokens, 64]
  float* scales;  // [tokens], if the form has scales

  TokenPairs from(int64_t token) const { return {pairs + token * kBlockPairs, scales + token}; }
};

// One block of GROUPS * 16 outputs.
template <int GROUPS>
struct WeightPairs {
  alignas(64) pair pairs[kBlockPairs][GROUPS][kLanes];
  vec scales[GROUPS];  // if the form has scales
};

// The weights that are needed after a block.
struct NextWeights {
  const char* first;
  int64_t stride;  // bytes between neighbouring groups of outputs
};

template <typename W> constexpr int64_t kBlockBytes = stored_rows_of<W>(kBlock) * kLanes * sizeof(W);

// Load the two features of a pair from stored rows of 16 outputs.
template <typename W>
void load_two(const W* block, int64_t p, vec (&values)[2]) {
  if constexpr (kSteps<W> == 2) load_pairs(block + p * kLanes, values);
  else
    for (int64_t i = 0; i < 2; ++i) values[i] = load(block + (2 * p + i) * kLanes);
}

// Multiply a block with all tokens from `token` on, by tiles of TOKENS and then by smaller ones. Each tile prefetches
// its share of the next weights.
template <typename Form, typename W, int TOKENS, int GROUPS>
void pass_tokens(
    int64_t tokens, const TokenPairs& x, const WeightPairs<GROUPS>& w, const NextWeights& next, vec (*total)[GROUPS],
    int64_t token = 0) {
  constexpr int64_t kLines = kBlockBytes<W> / 64;
  for (; token + TOKENS <= tokens; token += TOKENS) {
    for (int64_t line = kLines * token / tokens; line < kLines * (token + TOKENS) / tokens; ++line)
      for (int j = 0; j < GROUPS; ++j) __builtin_prefetch(next.first + j * next.stride + line * 64, 0, kFirstLevel);
    Form::template add<TOKENS, GROUPS>(x.from(token), w, total + token);
  }
  if constexpr (TOKENS > 1) pass_tokens<Form, W, TOKENS / 2, GROUPS>(tokens, x, w, next, total, token);
}

// Widen one block of the outputs [group, group + GROUPS).
template <typename Form, typename W, int GROUPS>
void widen_block(const Gemm& g, int64_t group, int64_t at, WeightPairs<GROUPS>& out) {
  constexpr int64_t kRows = stored_rows_of<W>(kBlock);
  const int64_t rows = stored_rows_of<W>(g.k) - at * kRows;
  for (int j = 0; j < GROUPS; ++j) {
    const W* block = weight_of<W>(g, group + j) + at * kRows * kLanes;
    W padded[kRows * kLanes];
    if (rows < kRows) {
      std::memset(padded, 0, sizeof(padded));
      std::memcpy(padded, block, rows * kLanes * sizeof(W));
      block = padded;
    }
    out.scales[j] = Form::template widen<W>(block, &out.pairs[0][j][0], GROUPS * kLanes);
  }
}

template <typename Form, typename W, int TOKENS, int GROUPS>
void block_panel(const Gemm& g, const TokenPairs& x, int64_t group) {
  struct Sums { vec of[GROUPS]; };
  static thread_local std::vector<Sums> kept;
  vec(*total)[GROUPS] = &at_least(kept, g.tokens)->of;
  std::memset(total, 0, g.tokens * sizeof(Sums));
  WeightPairs<GROUPS> w;
  const int64_t blocks = num_groups(g.k), stride = stored_rows_of<W>(g.k) * kLanes * sizeof(W);
  const char* weight = reinterpret_cast<const char*>(weight_of<W>(g, group));
  for (int64_t at = 0; at < blocks; ++at) {
    widen_block<Form, W, GROUPS>(g, group, at, w);
    const char* next = at + 1 < blocks ? weight + (at + 1) * kBlockBytes<W> : weight + GROUPS * stride;
    const TokenPairs block = x.from(at * g.tokens);
    pass_tokens<Form, W, TOKENS, GROUPS>(g.tokens, block, w, {next, stride}, total);
  }
  finish(g, {0, g.tokens}, {group, GROUPS}, total[0]);
}

// Return memory for `count` blocks of tokens, which is kept from call to call.
inline TokenPairs kept_pairs(int64_t count) {
  static thread_local std::vector<pair> kept;
  static thread_local std::vector<float> scales;
  return {at_least(kept, count * kBlockPairs), at_least(scales, count)};
}

template <typename Form, typename W, int TOKENS, int GROUPS>
void multiply_blocks(const Gemm& g) {
  const int64_t blocks = num_groups(g.k), rounded = blocks * g.tokens;
  const TokenPairs x = kept_pairs(rounded);
  for_each(rounded, kRoundedAtOnce, [&](int64_t i) {
    const int64_t token = i / blocks, block = i % blocks, k = block * kBlock;
    Form::round(g.x + token * g.k + k, g.k - k, x.from(block * g.tokens + token));
  });
  for_each_panel<GROUPS>(
      g.groups(), [&](int64_t group) { block_panel<Form, W, TOKENS, GROUPS>(g, x, group); },
      [&](int64_t group) { block_panel<Form, W, TOKENS, 1>(g, x, group); });
}

template <typename Form, typename W, int TOKENS, int GROUPS>
void gemm_blocks(const Gemm& g) {
  for (int64_t first = 0; first < g.tokens; first += kTokensAtOnce)
    multiply_blocks<Form, W, TOKENS, GROUPS>(g.part(first, kTokensAtOnce));
}

}  // namespace opt_trt
