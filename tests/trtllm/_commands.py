"""The command lines of NVIDIA's README for OPT, as they stand but for line breaks.

The newest is `examples/models/contrib/opt/README.md` at 6e1dd9c88e8c99621bb64aaa227f3aa9394919ce; that of 0.11.0 is
`examples/opt/README.md` at 05316d3313360012536ace46c781518f5afae75e; that of 0.10 the same file of a fork,
WhiteD2125/TensorRT-LLM at 6ad7cf1bcc08e31990c62ba929a8e84f35667654. All convert and summarize alike.
"""

from __future__ import annotations

CONVERT = """
python3 convert_checkpoint.py --model_dir ./opt-125m --dtype float16 --output_dir ./opt/125M/trt_ckpt/fp16/1-gpu/
python3 convert_checkpoint.py --model_dir ./opt-350m --dtype float16 --output_dir ./opt/350M/trt_ckpt/fp16/1-gpu/
python3 convert_checkpoint.py --model_dir ./opt-2.7b --dtype float16 --output_dir ./opt/2.7B/trt_ckpt/fp16/1-gpu/
python3 convert_checkpoint.py --model_dir ./opt-66b --dtype float16 --tp_size 4 --output_dir ./opt/66B/trt_ckpt/fp16/4-gpu/ --workers 2
python3 convert_checkpoint.py --model_dir ./opt-125m --dtype float16 --output_dir ./opt/125M/trt_ckpt/fp16/2-gpu/ --tp_size 2 --use_parallel_embedding --embedding_sharding_dim 1
python3 convert_checkpoint.py --model_dir ./opt-125m --dtype float16 --output_dir ./opt/125M/trt_ckpt/fp16/2-gpu/ --tp_size 2 --use_parallel_embedding --embedding_sharding_dim 0
"""  # noqa: E501  # as they are there
BUILD = """
trtllm-build --checkpoint_dir ./opt/125M/trt_ckpt/fp16/1-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_dir ./opt/125M/trt_engines/fp16/1-gpu/
trtllm-build --checkpoint_dir ./opt/350M/trt_ckpt/fp16/1-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_dir ./opt/350M/trt_engines/fp16/1-gpu/
trtllm-build --checkpoint_dir ./opt/2.7B/trt_ckpt/fp16/1-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_dir ./opt/2.7B/trt_engines/fp16/1-gpu/
trtllm-build --checkpoint_dir ./opt/66B/trt_ckpt/fp16/4-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_dir ./opt/66B/trt_engines/fp16/4-gpu/ --workers 2
trtllm-build --checkpoint_dir ./opt/125M/trt_ckpt/fp16/2-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_dir ./opt/125M/trt_engines/fp16/2-gpu/ --workers 2
"""  # noqa: E501
BUILD_0_11 = """
trtllm-build --checkpoint_dir ./opt/125M/trt_ckpt/fp16/2-gpu/ --gemm_plugin float16 --lookup_plugin float16 --max_batch_size 8 --max_input_len 924 --max_seq_len 1024 --output_dir ./opt/125M/trt_engines/fp16/2-gpu/ --workers 2
"""  # noqa: E501
BUILD_0_10 = """
trtllm-build --checkpoint_dir ./opt/125M/trt_ckpt/fp16/1-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_output_len 100 --output_dir ./opt/125M/trt_engines/fp16/1-gpu/
trtllm-build --checkpoint_dir ./opt/350M/trt_ckpt/fp16/1-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_output_len 100 --output_dir ./opt/350M/trt_engines/fp16/1-gpu/
trtllm-build --checkpoint_dir ./opt/2.7B/trt_ckpt/fp16/1-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_output_len 100 --output_dir ./opt/2.7B/trt_engines/fp16/1-gpu/
trtllm-build --checkpoint_dir ./opt/66B/trt_ckpt/fp16/4-gpu/ --gemm_plugin float16 --max_batch_size 8 --max_input_len 924 --max_output_len 100 --output_dir ./opt/66B/trt_engines/fp16/4-gpu/ --workers 2
trtllm-build --checkpoint_dir ./opt/125M/trt_ckpt/fp16/2-gpu/ --gemm_plugin float16 --lookup_plugin float16 --max_batch_size 8 --max_input_len 924 --max_output_len 100 --output_dir ./opt/125M/trt_engines/fp16/2-gpu/ --workers 2
"""  # noqa: E501
SUMMARIZE = """
python3 ../../../summarize.py --engine_dir ./opt/125M/trt_engines/fp16/1-gpu/ --test_hf --batch_size 1 --test_trt_llm --hf_model_dir opt-125m --data_type fp16 --check_accuracy --tensorrt_llm_rouge1_threshold=14
python3 ../../../summarize.py --engine_dir ./opt/350M/trt_engines/fp16/1-gpu/ --test_hf --batch_size 1 --test_trt_llm --hf_model_dir opt-350m --data_type fp16 --check_accuracy --tensorrt_llm_rouge1_threshold=20
python3 ../../../summarize.py --engine_dir ./opt/2.7B/trt_engines/fp16/1-gpu/ --test_hf --batch_size 1 --test_trt_llm --hf_model_dir opt-2.7b --data_type fp16 --check_accuracy --tensorrt_llm_rouge1_threshold=20
mpirun -n 4 --allow-run-as-root python3 ../../../summarize.py --engine_dir ./opt/66B/trt_engines/fp16/4-gpu/ --batch_size 1 --test_trt_llm --hf_model_dir opt-66b --data_type fp16 --check_accuracy --tensorrt_llm_rouge1_threshold=20
mpirun -n 2 --allow-run-as-root python3 ../../../summarize.py --engine_dir ./opt/125M/trt_engines/fp16/2-gpu/ --batch_size 1 --test_trt_llm --hf_model_dir opt-125m --data_type fp16 --check_accuracy --tensorrt_llm_rouge1_threshold=14
"""  # noqa: E501
# The flags that its text says to add, by the script that takes them.
ADDED = {
    "trtllm-build": ("--enable_context_fmha", "--context_fmha enable --gpt_attention_plugin float16"),
    "summarize.py": ("--enable_context_fmha_fp32_acc",),
    "run.py": ("--enable_context_fmha_fp32_acc",),
}
ADDED_0_11 = ("--context_fmha enable --context_fmha_fp32_acc enable --gpt_attention_plugin float16",)
RUN = (
    "python3 ../../../run.py --engine_dir ./opt/125M/trt_engines/fp16/1-gpu/ --hf_model_dir opt-125m --max_output_len 8"
)


def lines(block: str) -> list[str]:
    """Return the command lines of a block."""
    return block.strip().splitlines()
