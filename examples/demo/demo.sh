#!/usr/bin/env bash
# The whole job on the demo model: convert, build, run, summarize, with the accuracy gate. `make demo` calls this.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
WORK=${WORK:-work/demo}
MODEL=examples/demo/model
GATE=${GATE:-89.9} # the model's fp32 score on all 256 articles, minus 2
mkdir -p "$WORK"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. convert: Hugging Face checkpoint -> TensorRT-LLM checkpoint"
"$PYTHON" convert_checkpoint.py --model_dir "$MODEL" --dtype float32 --output_dir "$WORK/checkpoint"

say "2. build: checkpoint -> engine for this machine (compiled once, then cached)"
"$PYTHON" build.py --checkpoint_dir "$WORK/checkpoint" --output_dir "$WORK/engine" \
  --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 \
  --output_timing_cache "$WORK/model.cache"

say "3. run: one article from the test set"
"$PYTHON" - "$WORK/article.txt" <<'PY'
import json, pathlib, sys
row = json.loads(pathlib.Path("examples/demo/test.jsonl").read_text().splitlines()[0])
pathlib.Path(sys.argv[1]).write_text((row["article"] + " TL;DR: ").strip().replace("\n", " ") + "\n")
PY
"$PYTHON" run.py --engine_dir "$WORK/engine" --tokenizer_dir "$MODEL" --input_file "$WORK/article.txt" --max_output_len 100

say "4. summarize: the engine beside Hugging Face, gated on ROUGE-1"
"$PYTHON" summarize.py --test_hf --test_trt_llm --hf_model_dir "$MODEL" --data_type fp32 --engine_dir "$WORK/engine" \
  --dataset_dir examples/demo/test.jsonl --batch_size 1 --max_ite 32 --output_dir "$WORK/scores" \
  --check_accuracy --tensorrt_llm_rouge1_threshold "$GATE" --max_rouge1_drop 0.5
