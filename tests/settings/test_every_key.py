"""Every key of a recipe has a test that fails without it, named here beside it."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from docs import key_tables
from tests._helpers import ROOT

TESTS = {
    "A run": {
        "name": "config/test_schema.py::test_a_name_may_have_folders",
        "data": "test_api.py::test_the_data_of_a_run_are_its_own_unless_others_are_named",
        "student": "runs/test_execute.py::test_a_run_leaves_its_records",
        "teacher": "runs/test_execute.py::test_the_manifest_names_the_teacher_by_its_weights_and_its_accuracy",
        "outputs": "runs/test_record_teacher.py::test_a_run_on_recorded_outputs_is_a_run_on_the_live_teacher_to_float16",
        "outputs_limit_mb": "runs/test_record_teacher.py::test_a_limit_names_the_top_that_is_within_it",
        "outputs_top": "runs/test_record_teacher.py::test_a_comparison_keeps_the_top_where_outputs_top_is_given",
        "outputs_max_error": "runs/test_record_teacher.py::test_a_top_that_is_too_inaccurate_is_refused_before_anything_is_written",
        "objective": "runs/test_execute.py::test_an_objective_that_matches_a_teacher_needs_one",
        "start": "runs/test_start.py::test_two_epochs_and_two_more_are_four_and_the_first_run_stays",
        "epochs": "config/test_schema.py::test_every_field_of_a_stage_reaches_the_fit",
        "batch_size": "runs/test_setup.py::test_a_run_s_steps_are_those_of_its_stages",
        "optimizer": "config/test_schema.py::test_every_field_of_a_stage_reaches_the_fit",
        "schedule": "config/test_schema.py::test_every_field_of_a_stage_reaches_the_fit",
        "accumulate": "training/test_step.py::test_micro_batches_are_cut_evenly",
        "clip": "training/test_loop.py::test_clipping_scales_the_gradient_to_the_norm",
        "precision": "training/test_loop.py::test_half_precision_runs_are_finite_and_keep_full_weights",
        "channels_last": "models/test_registry.py::test_a_channels_last_student_is_saved_and_left_so",
        "nonfinite": "training/test_stateful_terms.py::test_a_step_that_is_not_applied_leaves_the_banks_alone",
        "checkpoint_steps": "training/test_loop.py::test_checkpoints_come_when_they_are_due",
        "checkpoint_seconds": "training/test_loop.py::test_checkpoints_come_when_they_are_due",
        "log_steps": "training/test_loop.py::test_the_first_of_several_is_named_at_the_next_look",
        "compile_teacher": "training/test_compile.py::test_what_is_switched_off_is_not_tried",
        "compile_student": "training/test_compile.py::test_what_is_switched_off_is_not_tried",
        "gradient_products": "training/test_compile.py::test_what_is_switched_off_is_not_tried",
        "graphs": "training/test_captured.py::test_a_fit_of_graphs_is_the_eager_fit",
        "loss_form": "training/test_last_layer.py::test_it_is_kept_on_resume_with_the_same_bits",
        "checkpoint_activations": "training/test_activations.py::test_a_run_that_is_resumed_may_compute_its_blocks_again",
        "sync_bn": "training/test_same_mathematics.py::test_local_statistics_are_said_to_be_another_method",
        "shard": "cli/test_several_processes.py::test_sharded_networks_are_trained_saved_and_evaluated_as_whole_ones",
        "on_policy": "runs/test_on_policy.py::test_a_share_alone_is_short_for_it_and_0_is_off",
        "seed": "runs/test_execute.py::test_the_same_recipe_gives_the_same_bits_and_each_seed_others",
        "data_seed": "runs/test_execute.py::test_the_same_recipe_gives_the_same_bits_and_each_seed_others",
        "device": "training/test_loop.py::test_a_device_that_is_not_there_is_refused",
        "threads": "runs/test_execute.py::test_another_number_of_threads_is_warned_of",
        "deterministic": "runs/test_setup.py::test_cudnn_times_its_algorithms_unless_a_run_is_deterministic",
        "weak_teacher": "runs/test_execute.py::test_a_teacher_no_better_than_chance_stops_the_run_unless_it_is_wanted",
        "stages": "config/test_schema.py::test_a_stage_says_what_differs",
    },
    "Data": {
        "source": "data/sources/test_hub.py::test_columns_are_chosen",
        "unlabelled": "runs/test_unlabelled.py::test_a_source_alone_is_short_and_its_share_can_be_typed",
        "test_shards": "data/sources/test_shards.py::test_validation_and_a_test_set_of_its_own",
        "image": "runs/test_pairs.py::test_texts_teach_a_student_of_images",
        "label": "data/sources/test_shards.py::test_labels_by_name_and_in_json",
        "embedding": "runs/test_embeddings.py::test_an_encoder_teaches_its_embedding_and_the_run_is_judged_by_retrieval",
        "mask": "data/sources/test_masks.py::test_a_picture_and_its_mask_are_cropped_and_flipped_by_one_draw",
        "labels": "data/test_multi_hot.py::test_columns_of_0_and_1",
        "text": "data/test_texts.py::test_rows_without_a_label_are_unlabelled",
        "prompt": "data/test_texts.py::test_only_the_completion_and_its_end_are_predicted",
        "completion": "data/test_texts.py::test_only_the_completion_and_its_end_are_predicted",
        "messages": "data/test_texts.py::test_only_what_the_assistant_says_is_predicted",
        "top_logprobs": "runs/test_served.py::test_it_teaches_as_the_recorded_top_classes_do",
        "tokenizer": "data/test_texts.py::test_a_recipe_names_a_learned_tokenizer",
        "teacher_tokenizer": "data/test_texts.py::test_a_teacher_may_read_by_a_tokenizer_of_its_own",
        "max_tokens": "data/test_texts.py::test_only_the_completion_and_its_end_are_predicted",
        "pack": "data/test_texts.py::test_packed_texts_lose_no_token_and_predict_the_next",
        "bucket_batches": "data/test_texts.py::test_batches_hold_texts_of_similar_length_whatever_the_resume_point_and_world",
        "shuffle_buffer": "data/sources/test_shards.py::test_without_a_buffer_the_whole_is_shuffled",
        "validation": "data/test_memory.py::test_validation_is_stratified_and_does_not_leak",
        "labelled": "data/test_memory.py::test_labelled_counts_per_class_and_leaves_other_splits_alone",
        "split_seed": "data/test_memory.py::test_validation_is_stratified_and_does_not_leak",
        "crop_padding": "data/sources/test_masks.py::test_a_picture_and_its_mask_are_cropped_and_flipped_by_one_draw",
        "flip": "data/sources/test_masks.py::test_a_picture_and_its_mask_are_cropped_and_flipped_by_one_draw",
        "random_resized_crop": "data/test_mixup.py::test_each_augmentation_is_a_function_of_seed_epoch_and_sample",
        "interpolation": "data/test_transforms.py::test_resized_pixels_are_pillows_to_a_rounding",
        "randaugment": "data/test_randaugment.py::test_settings_reach_the_training_views_alone",
        "transform": "runs/test_execute.py::test_a_callers_own_transform_is_recorded_as_such_and_resumed_to_the_bit",
        "random_erasing": "data/test_erasing.py::test_settings_reach_the_training_views_alone",
        "mixup": "data/test_mixup.py::test_shares_of_mixup_follow_the_beta_distribution",
        "cutmix": "data/test_mixup.py::test_the_share_of_cutmix_is_the_area_that_is_left",
        "mix_probability": "data/test_mixup.py::test_switch_and_probability",
        "switch_probability": "data/test_mixup.py::test_switch_and_probability",
        "size": "runs/test_networks.py::test_random_weights_take_the_data_s_size_and_what_is_typed_comes_first",
        "test_crop": "data/sources/test_imagefolder.py::test_the_share_of_the_evaluation_view",
        "test": "data/sources/test_imagefolder.py::test_one_image_per_class_cannot_be_held_out_but_may_be_evaluated_on",
        "workers": "data/sources/test_imagefolder.py::test_workers_do_not_change_anything",
        "on_corrupt": "data/test_texts.py::test_a_damaged_line_is_named_by_its_number_or_left_out",
        "memory_limit_mb": "data/test_unlabelled.py::test_pixels_of_another_white_are_brought_to_the_sources_own",
        "on_device": "data/test_on_device.py::test_where_pixels_lie",
        "root": "data/sources/test_torchvision.py::test_a_data_set_that_is_there",
    },
    "Unlabelled data": {
        "source": "data/test_unlabelled.py::test_texts_join_the_training_split_of_any_source_that_has_the_column",
        "share": "data/test_unlabelled.py::test_each_batch_has_its_share_and_an_epoch_every_labelled_sample_once",
    },
    "randaugment": {
        "operations": "data/test_randaugment.py::test_images_equal_the_drawn_operations_one_by_one",
        "magnitude": "data/test_randaugment.py::test_magnitudes_are_normal_and_cut_off",
        "magnitude_std": "data/test_randaugment.py::test_magnitudes_are_normal_and_cut_off",
    },
    "Models": {
        "name": "models/test_registry.py::test_random_weights_are_a_function_of_the_seed_alone",
        "weights": "models/test_io.py::test_checkpoints_as_training_scripts_write_them",
        "size": "runs/test_networks.py::test_a_typed_size_is_the_shorter_side",
        "config": "models/sources/test_hf.py::test_an_image_type_with_a_configuration_has_random_weights",
        "trained": "runs/test_texts.py::test_a_head_alone_is_trained_and_a_stand_in_has_the_datas_classes",
        "init": "runs/test_texts.py::test_a_student_made_of_its_teacher_learns_and_is_rebuilt_from_its_folder",
        "classes": "test_api.py::test_a_model_is_judged_on_other_data_by_the_names_of_its_classes",
        "mean": "models/test_exported.py::test_statistics_are_typed",
        "std": "models/test_exported.py::test_statistics_are_typed",
        "output": "models/test_exported.py::test_it_tells_two_outputs_of_a_file_apart",
        "reads": "runs/test_pairs.py::test_what_a_network_reads_is_typed_where_samples_are_both_and_only_there",
    },
    "lora": {
        "lora": "runs/test_trained_parts.py::test_files_hold_what_is_trained_alone_and_resume_and_load_to_the_bit",
        "alpha": "runs/test_trained_parts.py::test_adapters_are_read_by_peft_and_can_be_merged",
        "targets": "runs/test_trained_parts.py::test_adapters_of_images_leave_what_a_network_computes_and_take_named_layers",
    },
    "init": {
        "from": "runs/test_texts.py::test_a_student_made_of_its_teacher_learns_and_is_rebuilt_from_its_folder",
        "layers": "models/test_subnetwork.py::test_layers_and_leading_channels_are_copied_and_a_folder_rebuilds_the_student",
        "width": "models/test_subnetwork.py::test_layers_and_leading_channels_are_copied_and_a_folder_rebuilds_the_student",
    },
    "Several teachers": {
        "members": "runs/test_teachers.py::test_a_list_is_short_for_members_and_overrides_reach_each",
        "weights": "models/test_ensembles.py::test_a_fingerprint_covers_what_the_weights_of_the_networks_do_not_say",
        "combine": "runs/test_teachers.py::test_recorded_outputs_are_of_one_combination_and_hold_each_member_s_for_terms",
    },
    "A teacher to train first": dict.fromkeys(
        [
            *("model", "objective", "epochs", "batch_size", "optimizer", "schedule", "clip", "precision"),
            *("labelled", "seed", "data_seed"),
        ],
        "config/test_schema.py::test_a_teacher_s_recipe_overrides_the_run_s",
    ),
    "sgd": {
        "lr": "training/test_optim.py::test_sgd_steps_as_written",
        "momentum": "training/test_optim.py::test_sgd_steps_as_written",
        "weight_decay": "training/test_optim.py::test_sgd_decays_every_parameter",
        "nesterov": "training/test_optim.py::test_sgd_steps_as_written",
    },
    "adamw": dict.fromkeys(
        ("lr", "betas", "eps", "weight_decay"), "training/test_optim.py::test_adamw_takes_its_numbers"
    ),
    "constant": {"warmup": "training/test_optim.py::test_warm_up_is_a_straight_line_that_ends_on_the_peak"},
    "step": {
        "every": "training/test_optim.py::test_step_lowers_after_every_so_many_epochs",
        "factor": "training/test_optim.py::test_step_lowers_after_every_so_many_epochs",
        "warmup": "training/test_optim.py::test_warm_up_is_a_straight_line_that_ends_on_the_peak",
    },
    "multistep": {
        "milestones": "training/test_optim.py::test_multistep_takes_other_milestones_and_factors",
        "factor": "training/test_optim.py::test_multistep_takes_other_milestones_and_factors",
        "warmup": "training/test_optim.py::test_warm_up_is_a_straight_line_that_ends_on_the_peak",
    },
    "cosine": {
        "final": "training/test_optim.py::test_cosine_ends_on_its_final_fraction",
        "warmup": "training/test_optim.py::test_cosine_starts_where_the_warm_up_ends",
    },
    "linear": dict.fromkeys(("start", "end", "begin", "until"), "settings/test_weights.py::test_linear"),
    "warm_up": dict.fromkeys(("value", "epochs"), "settings/test_weights.py::test_warm_up_counts_epochs_from_one"),
    "cosine_warm_up": dict.fromkeys(
        ("value", "epochs"), "settings/test_weights.py::test_cosine_warm_up_counts_epochs_from_one"
    ),
    "Stages": dict.fromkeys(
        ("objective", "epochs", "batch_size", "optimizer", "schedule", "clip", "on_policy"),
        "config/test_schema.py::test_every_field_of_a_stage_reaches_the_fit",
    ),
    "on_policy": {
        "share": "runs/test_on_policy.py::test_a_share_alone_is_short_for_it_and_0_is_off",
        "new_tokens": "models/test_generate.py::test_a_text_ends_at_its_end_or_at_most_so_long",
        "temperature": "models/test_generate.py::test_tokens_come_as_often_as_the_softmax_says",
    },
    "A comparison": {
        "objectives": "config/test_schema.py::test_a_comparison_needs_its_objectives",
        "seeds": "config/test_schema.py::test_a_comparison_that_is_wrong_is_answered",
        "baseline": "report/test_table.py::test_rows_are_teacher_then_baseline_then_the_records_order",
        "share_data_seed": "studies/test_compare.py::test_the_plan_of_shared_seeds",
        "together": "studies/test_compare.py::test_those_of_one_data_seed_are_together_and_the_same_as_one_by_one",
    },
}
"""The test of each key in each table of docs/recipes.md."""


@cache
def functions(path: str) -> tuple[str, set[str]]:
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    return source, {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("section", key_tables.SECTIONS)
def test_every_key_has_its_test(section: str) -> None:
    assert TESTS[section].keys() == {row[0].strip("`") for row in key_tables.SECTIONS[section]}
    for key, test in TESTS[section].items():
        path, _, name = test.partition("::")
        source, names = functions(path)
        assert name in names, f"{key}: {test} is not there"
        assert re.search(rf"\b{key}\b", source), f"{key}: {path} does not name it"
