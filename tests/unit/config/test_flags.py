"""Every accepted flag of the commands, with the test that shows its effect. (Refused ones: test_cli.py.)"""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.cache_flags import CacheConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.summarize_flags import SummarizeConfig

TESTS = Path(__file__).parents[2]

EFFECTS: dict[type, dict[str, str]] = {
    ConvertConfig: {
        "model_dir": "unit/checkpoint/test_golden.py::test_bytes_are_tensorrt_llms",
        "model_type": "unit/sources/test_blip2.py::test_the_bytes_are_those_of_the_language_model_alone",
        "md5_manifest": "unit/sources/test_manifest.py::test_a_conversion_hashes_first_and_says_so",
        "output_dir": "unit/convert/test_convert.py::test_a_failed_conversion_keeps_the_old_checkpoint",
        "dtype": "unit/checkpoint/test_golden.py::test_bytes_are_tensorrt_llms",
        "use_parallel_embedding": "unit/convert/test_convert.py::test_parallel_embedding_is_recorded",
        "embedding_sharding_dim": "unit/convert/test_convert.py::test_parallel_embedding_is_recorded",
        "tp_size": "unit/convert/test_convert_ranks.py::test_the_parts_of_all_ranks_make_up_the_model",
        "pp_size": "unit/convert/test_convert_ranks.py::test_embedding_is_on_the_first_stage_and_head_on_the_last",
        "pp_layers": "unit/convert/test_convert_ranks.py::test_stages_hold_the_layers_asked_for",
        "use_weight_only": "unit/convert/test_convert_weight_only.py::test_stored_bytes_are_the_scalar_quantizers",
        "weight_only_precision": "unit/convert/test_convert_weight_only.py::test_stored_bytes_are_the_scalar_quantizers",
        "target_sm": "unit/convert/test_convert_weight_only.py::test_config_records_mode_and_gpu",
        "defer_quantization": "unit/convert/test_convert_weight_only.py::test_deferred_weights_are_plain_with_a_quant_algo",
        "report": "unit/convert/test_quant_report.py::test_numbers_are_those_of_the_stored_weights",
        "workers": "unit/convert/test_rank_files.py::test_as_many_workers_as_asked_for_run_at_the_same_time",
        "log_level": "unit/convert/test_convert.py::test_log_level_warning_prints_nothing",
    },
    BuildConfig: {
        "checkpoint_dir": "engine/test_build.py::test_an_engine_runs_after_its_checkpoint_and_source_are_gone",
        "packed_sm": "unit/checkpoint/test_packed_sm.py::test_builder_and_its_ranks_know_it",
        "output_dir": "engine/test_build.py::test_an_interrupted_build_leaves_nothing",
        "backend": "engine/test_build.py::test_the_backend_is_recorded_and_an_unknown_one_is_refused",
        "device": "unit/backends/inductor/test_cuda_build.py::test_the_gpu_is_taken_where_there_is_one",
        "target_sm": "unit/backends/tensorrt/test_engine_plan.py::test_engines_are_for_the_gpus_asked_for_or_for_all_since_sm_80",
        "target_isa": "engine/test_target_isa.py::test_code_stays_within_its_instruction_set",
        "max_batch_size": "engine/test_build.py::test_limits_are_recorded_clipped_and_enforced",
        "max_input_len": "engine/test_build.py::test_limits_are_recorded_clipped_and_enforced",
        "max_seq_len": "engine/test_build.py::test_limits_are_recorded_clipped_and_enforced",
        "max_num_tokens": "engine/test_build.py::test_limits_are_recorded_clipped_and_enforced",
        "opt_num_tokens": "unit/plugins/test_tactic.py::test_opt_num_tokens_weighs_its_own_bucket_only",
        "tokens_per_block": "engine/test_build.py::test_limits_are_recorded_clipped_and_enforced",
        "gemm_plugin": "engine/test_build.py::test_disabled_plugins_leave_the_library_only",
        "gpt_attention_plugin": "engine/test_build.py::test_disabled_plugins_leave_the_library_only",
        "context_fmha": "engine/test_build.py::test_context_fmha_disable_leaves_unfused_attention",
        "deterministic": "engine/test_deterministic.py::test_a_sequence_has_the_same_bits_alone_and_in_any_batch",
        "context_int8": "engine/test_fixed_point.py::"
        "test_context_int8_rounds_several_tokens_only_and_says_by_how_much",
        "logits_dtype": "engine/test_decoder.py::test_fp16_logits_are_rounded_to_fp16_when_asked",
        "lm_head_precision": "engine/test_quantized.py::"
        "test_a_quantized_head_gives_the_logits_of_the_dequantized_one",
        "gather_context_logits": "engine/test_build.py::test_gather_flags_let_a_session_return_logits",
        "gather_generation_logits": "engine/test_build.py::test_gather_flags_let_a_session_return_logits",
        "gather_all_token_logits": "engine/test_build.py::test_gather_flags_let_a_session_return_logits",
        "use_parallel_embedding": "engine/test_build.py::test_flags_that_do_not_fit_the_checkpoint_are_refused",
        "embedding_sharding_dim": "engine/test_build.py::test_flags_that_do_not_fit_the_checkpoint_are_refused",
        "retime": "unit/backends/inductor/test_timings.py::test_retime_reads_no_timings_and_replaces_the_users",
        "threads": "unit/test_commands.py::test_threads_are_set_before_torch_loads",
        "workers": "unit/backends/inductor/test_engine_ranks.py::test_as_many_ranks_are_written_at_a_time_as_workers_asked_for",
        "input_timing_cache": "engine/test_build.py::test_two_builds_with_one_timing_cache_choose_the_same_tactics",
        "output_timing_cache": "engine/test_build.py::test_two_builds_with_one_timing_cache_choose_the_same_tactics",
        "profiling_verbosity": "engine/test_build.py::test_profiling_verbosity_says_how_much_of_the_table_is_printed",
        "dry_run": "engine/test_build.py::test_a_dry_run_prints_the_plan_and_writes_nothing",
        "max_output_len": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "max_beam_width": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "kv_cache_type": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "paged_kv_cache": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "remove_input_padding": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "use_paged_context_fmha": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "context_fmha_fp32_acc": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "lookup_plugin": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "multiple_profiles": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "strip_plan": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "weight_sparsity": "tensorrt/test_build.py::test_flags_reach_the_library",
        "weight_streaming": "tensorrt/test_build.py::test_flags_reach_the_library",
        "fast_build": "tensorrt/test_build.py::test_flags_reach_the_library",
        "enable_debug_output": "trtllm/test_conformance.py::test_the_backend_fits_the_release",
        "visualize_network": "tensorrt/test_build.py::test_an_engine_says_what_it_is_and_what_it_runs_on",
        "monitor_memory": "tensorrt/test_build.py::test_an_engine_says_what_it_is_and_what_it_runs_on",
        "tensorrt_llm_version": "trtllm/test_build.py::test_a_dry_run_prints_the_call_of_any_release",
        "log_level": "engine/test_build.py::test_log_level_warning_prints_nothing",
    },
    RunConfig: {
        "engine_dir": "unit/run/test_run.py::test_the_kv_cache_flags_reach_the_engine",
        "tokenizer_dir": "unit/run/test_run.py::test_text_is_printed_as_upstream_prints_it",
        "hf_model_dir": "unit/run/test_run.py::test_the_hugging_face_directory_has_the_tokenizer_too",
        "no_add_special_tokens": "unit/run/test_run.py::test_no_special_tokens_means_no_prefix",
        "max_input_length": "unit/run/test_run.py::test_prompts_are_cut_from_the_left",
        "end_id": "unit/run/test_run.py::test_the_end_id_ends_a_text_and_is_not_printed",
        "pad_id": "unit/run/test_run.py::test_pad_id_says_what_is_padding",
        "temperature": "unit/run/test_run.py::test_a_narrow_choice_leaves_nothing_to_chance",
        "top_k": "unit/run/test_run.py::test_a_narrow_choice_leaves_nothing_to_chance",
        "top_p": "unit/run/test_run.py::test_a_narrow_choice_leaves_nothing_to_chance",
        "min_p": "unit/run/test_run.py::test_a_narrow_choice_leaves_nothing_to_chance",
        "repetition_penalty": "unit/run/test_run.py::test_penalties_and_bans_change_what_is_most_likely",
        "presence_penalty": "unit/run/test_run.py::test_penalties_and_bans_change_what_is_most_likely",
        "frequency_penalty": "unit/run/test_run.py::test_penalties_and_bans_change_what_is_most_likely",
        "no_repeat_ngram_size": "unit/run/test_run.py::test_penalties_and_bans_change_what_is_most_likely",
        "min_length": "unit/run/test_run.py::test_min_length_keeps_the_end_away",
        "random_seed": "unit/run/test_run.py::test_the_seed_decides_what_is_drawn",
        "num_beams": "unit/run/test_run.py::test_all_beams_are_printed_best_first",
        "length_penalty": "unit/run/test_run.py::test_beam_flags_reach_the_search",
        "early_stopping": "unit/run/test_run.py::test_beam_flags_reach_the_search",
        "beam_search_diversity_rate": "unit/run/test_run.py::test_beam_flags_reach_the_search",
        "penalty_alpha": "unit/run/test_run.py::test_contrastive_search_leaves_what_is_most_likely",
        "threads": "unit/test_commands.py::test_threads_are_set_before_torch_loads",
        "max_tokens_in_paged_kv_cache": "unit/run/test_run.py::test_the_kv_cache_flags_reach_the_engine",
        "kv_cache_free_gpu_memory_fraction": "unit/run/test_run.py::test_the_kv_cache_flags_reach_the_engine",
        "kv_cache_enable_block_reuse": "unit/run/test_run.py::test_the_kv_cache_flags_reach_the_engine",
        "scheduler_policy": "unit/run/test_run.py::test_the_kv_cache_flags_reach_the_engine",
        "context_chunk_size": "unit/run/test_run.py::test_the_kv_cache_flags_reach_the_engine",
        "log_level": "unit/config/test_flags.py::test_verbose_adds_the_traceback",
        "max_output_len": "unit/run/test_run.py::test_text_is_printed_as_upstream_prints_it",
        "input_text": "unit/run/test_run.py::test_text_is_printed_as_upstream_prints_it",
        "input_file": "unit/run/test_run.py::test_a_text_file_is_a_prompt_per_line",
        "output_csv": "unit/run/test_run.py::test_ids_in_and_ids_out_need_no_tokenizer",
        "output_npy": "unit/run/test_run.py::test_npy_in_loses_its_padding_and_npy_out_is_a_rectangle_of_integers",
        "output_log_probs_npy": "unit/run/test_run.py::test_log_probabilities_are_written_beside_the_text",
        "output_cum_log_probs_npy": "unit/run/test_run.py::test_log_probabilities_are_written_beside_the_text",
        "output_logits_npy": "unit/run/test_run.py::test_logits_are_written_as_upstream_lays_them_out",
        "output_generation_logits": "unit/run/test_run.py::test_logits_are_written_as_upstream_lays_them_out",
        "num_return_sequences": "unit/run/test_run.py::test_a_prompt_may_have_several_outputs",
        "stop_words": "unit/run/test_run.py::test_stop_words_end_outputs_and_are_not_shown",
        "bad_words": "unit/run/test_run.py::test_penalties_and_bans_change_what_is_most_likely",
        "streaming": "unit/run/test_run.py::test_a_stream_ends_as_the_same_text",
        "streaming_interval": "unit/run/test_run.py::test_a_stream_is_printed_every_interval",
        "use_py_session": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "debug_mode": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "enable_context_fmha_fp32_acc": "unit/backends/inductor/test_cuda_engine.py::test_prompts_are_summed_in_fp16_unless_told",
        "multi_block_mode": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "cuda_graph_mode": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "gpu_weights_percent": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "enable_chunked_context": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "max_attention_window_size": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "sink_token_length": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "fail_fast_on_attention_window_too_large": "trtllm/test_keywords.py::test_runtime_flags_reach_from_dir",
        "interactive": "unit/run/test_interactive.py::test_every_line_is_continued",
        "run_profiling": "unit/run/test_run.py::test_profiling_warms_up_ten_times_and_times_ten",
    },
    SummarizeConfig: {
        "engine_dir": "engine/test_pipeline.py::test_the_demo_pipeline_scores_like_hugging_face",
        "tokenizer_dir": "unit/evaluate/test_summarize.py::test_without_a_tokenizer_the_flag_is_named",
        "hf_model_dir": "engine/test_pipeline.py::test_the_demo_pipeline_scores_like_hugging_face",
        "no_add_special_tokens": "unit/text/test_text.py::test_no_special_tokens_leaves_the_text_alone",
        "max_input_length": "unit/evaluate/test_prompts.py::test_the_marker_and_the_leading_token_survive_the_cut",
        "end_id": "unit/evaluate/test_summarize.py::test_end_id_ends_a_summary",
        "pad_id": "unit/evaluate/test_hf_reference.py::test_left_padding_does_not_change_ids",
        "temperature": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "top_k": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "top_p": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "min_p": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "repetition_penalty": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "presence_penalty": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "frequency_penalty": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "no_repeat_ngram_size": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "min_length": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "num_beams": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "length_penalty": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "early_stopping": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "beam_search_diversity_rate": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "penalty_alpha": "unit/evaluate/test_summarize.py::test_sampling_flags_reach_the_engine",
        "threads": "unit/test_commands.py::test_threads_are_set_before_torch_loads",
        "max_tokens_in_paged_kv_cache": "unit/runtime/scheduling/test_kv_cache.py::test_max_tokens_is_rounded_up_to_whole_blocks",
        "kv_cache_free_gpu_memory_fraction": "unit/runtime/scheduling/test_kv_cache.py::test_pool_takes_its_share_of_free_memory_only",
        "kv_cache_enable_block_reuse": "unit/runtime/scheduling/test_scheduler.py::test_a_known_beginning_is_not_computed_again",
        "scheduler_policy": "unit/runtime/scheduling/test_scheduler.py::test_the_newest_starts_over_when_blocks_run_out",
        "context_chunk_size": "unit/runtime/scheduling/test_scheduler.py::test_prompts_are_cut_small_while_others_generate",
        "log_level": "unit/evaluate/test_summarize.py::test_warnings_level_prints_the_table_alone",
        "use_py_session": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "debug_mode": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "enable_context_fmha_fp32_acc": "unit/backends/inductor/test_cuda_engine.py::test_prompts_are_summed_in_fp16_unless_told",
        "multi_block_mode": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "cuda_graph_mode": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "gpu_weights_percent": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "enable_chunked_context": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "max_attention_window_size": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "sink_token_length": "trtllm/test_keywords.py::test_both_scripts_tell_the_runtime_flags",
        "test_hf": "unit/evaluate/test_summarize.py::test_hugging_face_alone_needs_no_engine",
        "test_trt_llm": "unit/evaluate/test_summarize.py::test_a_good_engine_passes_with_exit_0",
        "hf_data_type": "unit/evaluate/test_hf_reference.py::test_it_computes_in_the_type_asked_for",
        "dataset_dir": "unit/evaluate/test_dataset.py::test_every_format_gives_the_same_rows",
        "dataset_cache_dir": "unit/evaluate/test_dataset.py::test_what_an_earlier_run_fetched_serves_without_a_network",
        "batch_size": "unit/evaluate/test_summarize.py::test_all_rows_of_all_batches_are_written_in_order",
        "max_ite": "unit/evaluate/test_summarize.py::test_max_ite_counts_batches",
        "output_len": "unit/evaluate/test_hf_reference.py::test_rows_differ_and_have_the_asked_length",
        "min_input_length": "unit/evaluate/test_prompts.py::test_short_articles_are_left_out_and_keep_their_index",
        "random_seed": "unit/evaluate/test_summarize.py::test_random_seed_decides_what_is_summarized",
        "check_accuracy": "unit/evaluate/test_summarize.py::test_a_bad_engine_fails_with_exit_1_after_its_table_and_files",
        "tensorrt_llm_rouge1_threshold": "unit/evaluate/test_gate.py::test_exactly_the_threshold_misses",
        "max_rouge1_drop": "unit/evaluate/test_summarize.py::test_a_drop_against_hugging_face_is_exit_1",
        "eval_ppl": "unit/evaluate/test_summarize.py::test_perplexity_gates_when_asked",
        "tensorrt_llm_ppl_threshold": "unit/evaluate/test_gate.py::test_perplexity_must_be_strictly_below",
        "output_dir": "unit/evaluate/test_summarize.py::test_all_rows_of_all_batches_are_written_in_order",
    },
    DescribeConfig: {
        "directories": "unit/describe/test_describe.py::test_a_checkpoint_is_a_header_and_a_table_per_rank",
        "packed_sm": "unit/checkpoint/test_packed_sm.py::test_describe_names_it_and_compares_the_weights",
        "compare": "unit/describe/test_compare.py::test_differences_are_printed_and_exit_1",
        "rank": "unit/describe/test_describe.py::test_one_rank_alone",
        "all": "unit/describe/test_describe.py::test_every_layer_has_its_own_lines_when_asked",
        "sha256": "unit/describe/test_describe.py::test_hashes_are_those_of_the_golden_checkpoints",
        "json": "unit/describe/test_describe.py::test_json_has_every_tensor",
        "log_level": "unit/describe/test_describe.py::test_log_level_decides_on_the_bar",
    },
    ExportConfig: {
        "checkpoint_dir": "unit/convert/test_export_hf.py::test_a_plain_model_comes_back_tensor_for_tensor",
        "packed_sm": "unit/checkpoint/test_packed_sm.py::test_exported_and_repacked_weights_are_those_of_the_named_checkpoint",
        "output_dir": "unit/convert/test_export_hf.py::test_only_an_export_is_replaced",
        "max_shard_size": "unit/convert/test_export_hf.py::test_several_files_have_an_index_and_are_the_same_model",
        "tokenizer_dir": "unit/convert/test_export_hf.py::test_a_tokenizer_is_copied_when_named",
        "log_level": "unit/convert/test_export_hf.py::test_the_export_says_where_it_is_from",
    },
    RepackConfig: {
        "checkpoint_dir": "unit/convert/test_repack.py::test_bytes_are_those_of_a_conversion_for_the_other_gpu",
        "packed_sm": "unit/checkpoint/test_packed_sm.py::test_exported_and_repacked_weights_are_those_of_the_named_checkpoint",
        "target_sm": "unit/convert/test_repack.py::test_bytes_are_those_of_a_conversion_for_the_other_gpu",
        "output_dir": "unit/convert/test_repack.py::test_without_an_output_directory_the_checkpoint_is_replaced",
        "log_level": "unit/convert/test_repack.py::test_one_line_says_what_was_done",
    },
    CacheConfig: {
        "actions": "unit/describe/test_cached.py::test_clearing_frees_what_was_asked_for",
        "only": "unit/describe/test_cached.py::test_clearing_frees_what_was_asked_for",
        "log_level": "unit/describe/test_cached.py::test_an_engine_that_is_being_made_stays",
    },
}  # fmt: skip


@pytest.mark.parametrize("config", EFFECTS)
def test_every_accepted_flag_has_a_proof(config):
    assert {f.name for f in fields(config)} == set(EFFECTS[config])


@pytest.mark.parametrize("proof", sorted({p for row in EFFECTS.values() for p in row.values()}))
def test_the_proof_exists(proof):
    file, name = proof.split("::")
    names = {n.name for n in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(n, ast.FunctionDef)}
    assert name in names


def test_verbose_adds_the_traceback(capsys):
    from opt_trt.cli import run_main
    from opt_trt.errors import UserError

    def fail(config):
        raise UserError(f"nothing there: {config.input_text}")

    for level, shown in (("info", False), ("verbose", True)):
        with pytest.raises(SystemExit):
            run_main(fail, RunConfig, ["--max_output_len", "1", "--log_level", level])
        assert ("Traceback" in capsys.readouterr().err) == shown
