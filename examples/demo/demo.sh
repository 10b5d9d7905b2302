#!/usr/bin/env bash
# Convert, build, run and summarize the demo model, with the accuracy gate. `make demo` calls this script. `make demo-tp`
# calls it with RANKS=2: each layer is cut for two processes, which mpirun starts.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
WORK=${WORK:-work/demo}
RANKS=${RANKS:-1}
ARTICLES=${ARTICLES:-32}
read -ra PRECISIONS <<<"${PRECISIONS:-fp16 int8 int4}"
MODEL=examples/demo/model
mkdir -p "$WORK"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

declare -A QUANTIZE=(
  [fp16]=""
  [int8]="--use_weight_only --weight_only_precision int8"
  [int4]="--use_weight_only --weight_only_precision int4"
)
# The score of the fp32 model on all 256 articles, minus 2. int4 has a lower score, so its gate is its own score minus 2.
declare -A GATES=([fp16]=89.9 [int8]=89.9 [int4]=77.0)

LAUNCH=("$PYTHON")
if ((RANKS > 1)); then
  MPIRUN=$(dirname "$(command -v "$PYTHON")")/mpirun # the one of the same environment
  AS_ROOT=$( ((EUID)) || echo --allow-run-as-root)
  LAUNCH=("$MPIRUN" -n "$RANKS" --oversubscribe ${AS_ROOT:+"$AS_ROOT"} "$PYTHON")
fi

say "1. convert: Hugging Face checkpoint -> TensorRT-LLM checkpoints"
for precision in "${PRECISIONS[@]}"; do
  # shellcheck disable=SC2086 # a value is several words
  "$PYTHON" convert_checkpoint.py --model_dir "$MODEL" --dtype float16 ${QUANTIZE[$precision]} \
    --tp_size "$RANKS" --output_dir "$WORK/checkpoint/$precision"
done

say "2. build: checkpoints -> engines for this machine (compiled once, then cached)"
for precision in "${PRECISIONS[@]}"; do
  "$PYTHON" build.py --device cpu --checkpoint_dir "$WORK/checkpoint/$precision" --output_dir "$WORK/$precision" \
    --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_timing_cache "$WORK/model.cache" \
    --workers "$RANKS"
done

say "3. run: one article from the test set"
"$PYTHON" - "$WORK/article.txt" <<'PY'
import json, pathlib, sys
row = json.loads(pathlib.Path("examples/demo/test.jsonl").read_text().splitlines()[0])
pathlib.Path(sys.argv[1]).write_text((row["article"] + " TL;DR: ").strip().replace("\n", " ") + "\n")
PY
"${LAUNCH[@]}" run.py --engine_dir "$WORK/${PRECISIONS[0]}" \
  --input_file "$WORK/article.txt" --max_output_len 100

say "4. summarize: the engines beside Hugging Face, gated on ROUGE-1"
"${LAUNCH[@]}" summarize.py --test_hf --test_trt_llm --hf_model_dir "$MODEL" --data_type fp32 \
  --engine_dir "${PRECISIONS[@]/#/$WORK/}" --dataset_dir examples/demo/test.jsonl --batch_size 1 --max_ite "$ARTICLES" \
  --output_dir "$WORK/scores" --check_accuracy --tensorrt_llm_rouge1_threshold \
  $(for precision in "${PRECISIONS[@]}"; do echo "${GATES[$precision]}"; done)
