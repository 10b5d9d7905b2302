// The tactics of matrix products: one row each, with the name that gemm/cpu.py gives it.
//
// A tactic's number is that of its row. Python asks for the number by the name (`gemm_tactic`) when an engine is built,
// and compiled programs contain the number. They call the library that the engine keeps, so other libraries may number
// tactics otherwise.
#pragma once
#include "fixed.h"
#include "interleaved.h"
#include "pairs.h"
#include "words.h"

namespace opt_trt {

struct GemmTactic {
  const char* name;
  GemmKernel run;                     // null if there is none for weights W or for this instruction set
  int64_t (*stored_rows)(int64_t k);  // of a group of 16 outputs, for k features
};

template <typename W>
constexpr GemmTactic kGemmTactics[] = {
    {"fp32_1", fp32_kernel<W, 1>(), stored_rows_of<W>},
    {"fp32_2", fp32_kernel<W, 2>(), stored_rows_of<W>},
    {"fp32_4", fp32_kernel<W, 4>(), stored_rows_of<W>},
    {"fp32_8", fp32_kernel<W, 8>(), stored_rows_of<W>},
    {"fp32_12", fp32_kernel<W, 12>(), stored_rows_of<W>},
    {"pairs_4", pairs_kernel<W, 4, 4>(), stored_rows_of<W>},
    {"pairs_8", pairs_kernel<W, 8, 3>(), stored_rows_of<W>},
    {"words_4", words_kernel<W, 4, 3>(), stored_rows_of<W>},
    {"fixed16_1", fixed_kernel<W, 2, 1, 8>(), quad_rows_of<W>},
    {"fixed16_2", fixed_kernel<W, 2, 2, 4>(), quad_rows_of<W>},
    {"fixed16_4", fixed_kernel<W, 2, 4, 3>(), quad_rows_of<W>},
    {"fixed16_8", fixed_kernel<W, 2, 8, 1>(), quad_rows_of<W>},
    {"fixed8_4", fixed_kernel<W, 1, 4, 4>(), quad_rows_of<W>},
    {"fixed8_8", fixed_kernel<W, 1, 8, 3>(), quad_rows_of<W>},
};

}  // namespace opt_trt
