"""Plant known bugs, one at a time, and see that the tests named for them fail.

    python tests/mutations.py [--only NAME]

Each plant replaces one passage of a module in a temporary copy of the package, so the checkout is never touched. The
exit status is 1 if a plant survives a test that should catch it, or if its passage is no longer in the source.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plant:
    """A bug: in ``module``, ``source`` becomes ``bug``, and each of ``tests`` must fail."""

    name: str
    module: str
    source: str
    bug: str
    tests: tuple[str, ...]


PLANTS = (
    Plant(
        "variance for spread in the preconditioned target",
        "denoiser",
        "level.noise_var + spread**2 * level.signal**2",
        "level.noise_var + spread * level.signal**2",
        (
            "test_denoiser::test_the_preconditioned_target_has_mean_square_one_and_no_part_along_x_t",
            "test_denoiser::test_the_preconditioned_target_is_that_of_karras_et_al",
        ),
    ),
    Plant(
        "signal shifted by the factor in place of power",
        "schedule",
        "log_snr - 2 * math.log(factor)",
        "log_snr - math.log(factor)",
        (
            "test_schedule::test_a_shifted_schedule_has_the_same_coarse_information_for_larger_images",
            "test_schedule::test_a_block_of_an_enlarged_image_is_known_as_well_as_its_pixel_was",
            "test_recipe::test_a_schedule_is_shifted_for_the_side_of_the_images",
        ),
    ),
    Plant(
        "cumulative factor in the posterior mean",
        "diffusion",
        "here.signal / before.signal * before.noise_var",
        "here.signal * before.noise_var",
        (
            "test_diffusion::test_posterior_times_marginal_is_transition_times_marginal",
            "test_sampling::test_ancestral_steps_are_those_of_the_ddpm_scheduler",
        ),
    ),
    Plant(
        "earlier noise in the posterior's denominator",
        "diffusion",
        "before.signal * added_var(before, here) / here.noise_var",
        "before.signal * added_var(before, here) / (before.noise_var or here.noise_var)",
        ("test_diffusion::test_one_step_posterior_in_the_letters_of_the_documents",),
    ),
    Plant(
        "missing root in the noising",
        "diffusion",
        "weighted_sum(level.signal, x_0, level.noise, eps)",
        "weighted_sum(level.signal, x_0, level.noise_var, eps)",
        (
            "test_diffusion::test_diffuse_is_a_draw_from_the_marginal",
            "test_diffusion::test_diffused_noise_of_unit_variance_keeps_unit_variance",
        ),
    ),
    Plant(
        "order of the steps not checked",
        "schedule",
        "    elif s >= t:\n",
        "    elif s > t:\n",
        ("test_diffusion::test_errors_name_argument_value_and_what_was_expected",),
    ),
    Plant(
        "unsquared beta in the weight",
        "bound",
        "weight = beta**2 / (2",
        "weight = beta / (2",
        ("test_bound::test_eps_weight_times_the_error_is_the_step_term_above_its_floor",),
    ),
    Plant(
        "weight on x_0 without its half",
        "bound",
        "0.5 * (before.snr - here.snr)",
        "1.0 * (before.snr - here.snr)",
        ("test_bound::test_x_0_weight_times_the_error_is_the_step_term",),
    ),
    Plant(
        "t never updated in the bound",
        "bound",
        "steps.append(step_term(q, denoise, x_0, x_t, t, variance)[None])",
        "steps.append(step_term(q, denoise, x_0, x_t, 2, variance)[None])",
        (
            "test_bound::test_terms_stand_in_their_places",
            "test_bound::test_the_mean_bound_is_entropy_plus_the_divergence_of_the_paths",
        ),
    ),
    Plant(
        "reconstruction left out of the bound",
        "bound",
        "return self.prior + self.steps.sum(0) + self.reconstruction",
        "return self.prior + self.steps.sum(0)",
        ("test_bound::test_the_mean_bound_is_entropy_plus_the_divergence_of_the_paths",),
    ),
    Plant(
        "tails of the discretized decoder lost",
        "bound",
        "upper = torch.where(x_0 > 1 - half, math.inf, upper)",
        "pass",
        ("test_bound::test_probabilities_of_all_levels_sum_to_one",),
    ),
    Plant(
        "signal as the determinant of v",
        "denoiser",
        "        det = b * level.signal - a * level.noise\n        return weighted_sum(b / det",
        "        det = b * level.signal\n        return weighted_sum(b / det",
        (
            "test_denoiser::test_round_trip_at_every_step",
            "test_denoiser::test_v_is_exact_over_the_whole_cosine_schedule",
        ),
    ),
    Plant(
        "network asked one step too early",
        "denoiser",
        "x_t.new_full(x_t.shape[:1], steps, dtype",
        "x_t.new_full(x_t.shape[:1], steps - 1, dtype",
        (
            "test_denoiser::test_the_network_is_asked_at_the_step_itself",
            "test_sampling::test_ddim_steps_are_those_of_the_ddim_scheduler",
        ),
    ),
    Plant(
        "score with the wrong sign",
        "denoiser",
        "(0.0, -1 / level.noise)",
        "(0.0, 1 / level.noise)",
        ("test_denoiser::test_the_score_target_is_the_gradient_of_the_log_marginal",),
    ),
    Plant(
        "float32 cumulative product",
        "schedule",
        "torch.log1p(-beta).cumsum(0)",
        "(1 - beta.float()).cumprod(0).double().log()",
        (
            "test_schedule::test_one_minus_alpha_bar_survives_the_cast_to_float32",
            "test_schedule::test_linear_schedule_is_a_line_of_betas",
        ),
    ),
    Plant(
        "betas of a list rounded to float32",
        "schedule",
        'torch.as_tensor(betas, dtype=torch.float64, device="cpu")',
        'torch.as_tensor(betas, device="cpu").to(torch.float64)',
        ("test_schedule::test_every_quantity_against_products_in_fifty_digits",),
    ),
    Plant(
        "cosine without the square",
        "schedule",
        "torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()",
        "torch.cos((u + offset) / (1 + offset) * (math.pi / 2))",
        (
            "test_schedule::test_cosine_schedule_is_a_squared_cosine_with_a_clipped_end",
            "test_schedule::test_the_middle_of_the_cosine_schedule_has_lost_half_of_the_power",
        ),
    ),
    Plant(
        "squared line of betas",
        "schedule",
        "torch.linspace(beta_1, beta_T, T, dtype=torch.float64)",
        "torch.linspace(beta_1**2, beta_T**2, T, dtype=torch.float64)",
        ("test_schedule::test_default_schedules_end_in_noise",),
    ),
    Plant(
        "noise power by subtraction",
        "schedule",
        "noise_var = 0.0 - compute.expm1(log_alpha_bar)",
        "noise_var = 1 - compute.exp(log_alpha_bar)",
        ("test_schedule::test_every_quantity_against_products_in_fifty_digits",),
    ),
    Plant(
        "deviation and variance exchanged",
        "gaussian",
        "alpha=math.sqrt(self._var)",
        "alpha=self._var",
        (
            "test_gaussian::test_a_sample_is_mean_plus_standard_deviation_times_noise",
            "test_gaussian::test_samples_have_the_stated_variance",
        ),
    ),
    Plant(
        "deviation and variance exchanged, one for each sample",
        "gaussian",
        "torch.addcmul(self._mean, self._var.sqrt(), z)",
        "torch.addcmul(self._mean, self._var, z)",
        ("test_gaussian::test_samples_have_the_stated_variance",),
    ),
    Plant(
        "wrong sign of the logarithm in KL",
        "gaussian",
        "(excess - _log1p(excess))",
        "(excess + _log1p(excess))",
        (
            "test_gaussian::test_kl_is_that_of_torch_distributions",
            "test_gaussian::test_kl_is_the_integral_of_p_log_p_over_q",
        ),
    ),
    Plant(
        "uniform noise",
        "gaussian",
        "z = torch.randn(",
        "z = torch.rand(",
        ("test_gaussian::test_samples_have_the_stated_variance",),
    ),
    Plant(
        "prior ignored in the exact denoiser",
        "exact",
        "means, log_weights = self.means, self.weights.log()",
        "means, log_weights = self.means, torch.zeros_like(self.weights)",
        ("test_exact::test_the_denoiser_is_the_posterior_mean_by_quadrature",),
    ),
    Plant(
        "drift of the SDE with the wrong sign",
        "sde",
        "return -0.5 * self.rate(u) * x",
        "return 0.5 * self.rate(u) * x",
        (
            "test_sde::test_fokker_planck_residual_vanishes_at_second_order",
            "test_sde::test_euler_maruyama_converges_to_the_law_at_first_order",
        ),
    ),
    Plant(
        "drift of the SDE without its half",
        "sde",
        "return -0.5 * self.rate(u) * x",
        "return -self.rate(u) * x",
        (
            "test_sde::test_fokker_planck_residual_vanishes_at_second_order_in_the_plane",
            "test_statements_sde::test_drift_and_noise_of_the_vp_sde_balance_at_unit_variance_only",
        ),
    ),
    Plant(
        "score of the reverse SDE with the wrong sign",
        "sde",
        "return self.drift(x, u) - weight * score(x, u)",
        "return self.drift(x, u) + weight * score(x, u)",
        (
            "test_sde::test_reverse_processes_have_the_forward_marginals",
            "test_convergence::test_the_density_by_finite_differences_converges_to_the_closed_form_at_second_order",
        ),
    ),
    Plant(
        "score of the reverse SDE twice as large",
        "sde",
        "weight = 0.5 * (1 + noise**2) * self.rate(u)",
        "weight = (1 + noise**2) * self.rate(u)",
        (
            "test_sde::test_reverse_processes_have_the_forward_marginals",
            "test_likelihood::test_log_density_of_the_flow_is_that_of_the_mixture",
        ),
    ),
    Plant(
        "noise factor of the reverse SDE not squared",
        "sde",
        "weight = 0.5 * (1 + noise**2) * self.rate(u)",
        "weight = 0.5 * (1 + noise) * self.rate(u)",
        ("test_sde::test_fokker_planck_residual_vanishes_at_second_order",),
    ),
    Plant(
        "reverse SDE on a rising clock",
        "sde",
        "return Process(drift, lambda u: noise * self.diffusion(u), arrow=-1)",
        "return Process(drift, lambda u: noise * self.diffusion(u), arrow=1)",
        (
            "test_sde::test_a_process_refuses_times_against_its_arrow",
            "test_sde::test_fokker_planck_residual_vanishes_at_second_order",
        ),
    ),
    Plant(
        "direction of time not checked",
        "sde",
        "if not process.arrow * (v - u) > 0:",
        "if False:",
        ("test_sde::test_a_process_refuses_times_against_its_arrow",),
    ),
    Plant(
        "rate of the chain without its logarithm",
        "sde",
        "return T * (table[t - 1] - table[t])",
        "return -T * math.expm1(table[t] - table[t - 1])",
        (
            "test_sde::test_chain_sde_observed_at_whole_steps_is_the_chain",
            "test_sde::test_log_alpha_bar_is_minus_the_integral_of_the_rate",
        ),
    ),
    Plant(
        "diffusion without its root",
        "sde",
        "return math.sqrt(self.rate(u))",
        "return self.rate(u)",
        (
            "test_sde::test_fokker_planck_residual_vanishes_at_second_order",
            "test_sde::test_reverse_processes_have_the_forward_marginals",
        ),
    ),
    Plant(
        "Langevin drift without its half",
        "sde",
        "Gaussian(x + 0.5 * size * score(x, u)",
        "Gaussian(x + size * score(x, u)",
        (
            "test_sde::test_langevin_steps_settle_near_the_law_with_an_error_of_the_order_of_the_step",
            "test_sde::test_a_langevin_step_is_one_step_of_the_reverse_sde_beyond_the_flow",
        ),
    ),
    Plant(
        "corrector at the time before the step",
        "sde",
        "langevin_step(self.score, x, after, size)",
        "langevin_step(self.score, x, before, size)",
        ("test_sde::test_predictor_corrector_alternates_a_step_in_time_and_steps_at_the_new_time",),
    ),
    Plant(
        "best variance with κ for κ²",
        "variance",
        "coefficient(on_x_0**2, x_t)",
        "coefficient(on_x_0, x_t)",
        (
            "test_variance::test_with_the_exact_variance_few_steps_deliver_the_law_up_to_the_first",
            "test_variance::test_the_exact_variance_is_the_best_for_the_bound",
        ),
    ),
    Plant(
        "fitted errors forget the value of the estimate",
        "variance",
        "step * ranges + _range(x_0_hat, ranges)",
        "step * ranges",
        ("test_variance::test_fitted_errors_are_those_of_the_law_by_step_and_by_value",),
    ),
    Plant(
        "network asked one step off between steps",
        "denoiser",
        "1 + (steps.to(x_t.dtype) - 1) / finer",
        "steps.to(x_t.dtype) / finer",
        ("test_evaluation::test_more_steps_in_between_come_down_to_the_bound_of_infinitely_many",),
    ),
    Plant(
        "Heun leaps through noise",
        "solvers",
        "here.sigma > 2.5 and here.sigma > self.leap",
        "here.sigma > 2.5e9 and here.sigma > self.leap",
        (
            "test_solvers::test_a_leap_through_noise_is_worse_with_a_look_ahead_even_where_the_denoiser_is_exact",
            "test_solvers::test_at_the_clipped_end_of_the_cosine_schedule_heun_keeps_its_head",
        ),
    ),
    Plant(
        "samples judged in the place of real images",
        "quality",
        "judge(held, others)",
        "judge(mixed[: parts * each], others)",
        ("test_judge::test_the_verdict_sees_real_images_as_real_copies_as_copies_and_noise_as_noise",),
    ),
    Plant(
        "Heun slope at the start of the step twice",
        "sde",
        "(slope + field(x + (v - u) * slope, v))",
        "(slope + field(x, u))",
        (
            "test_sde::test_ode_solvers_have_their_order_in_both_directions",
            "test_convergence::test_heun_has_weak_order_two",
        ),
    ),
    Plant(
        "divergence subtracted from the log-density",
        "likelihood",
        "prior.log_prob(end[:, :-1].reshape(x.shape)) + end[:, -1]",
        "prior.log_prob(end[:, :-1].reshape(x.shape)) - end[:, -1]",
        ("test_likelihood::test_log_density_of_the_flow_is_that_of_the_mixture",),
    ),
    Plant(
        "probe multiplied once",
        "likelihood",
        "return (pulled * probe).flatten(1).sum(1)",
        "return pulled.flatten(1).sum(1)",
        ("test_likelihood::test_hutchinson_averaged_over_all_signs_is_the_divergence",),
    ),
    Plant(
        "continuous bound without its half",
        "likelihood",
        "0.5 * rise * error",
        "1.0 * rise * error",
        (
            "test_likelihood::test_the_diffusion_term_of_gaussian_data_is_its_integral",
            "test_likelihood::test_the_continuous_bound_is_the_limit_of_the_discrete_ones_and_lies_below_them",
        ),
    ),
    Plant(
        "cells of grey levels too narrow",
        "likelihood",
        "width = 2.0 / (levels - 1)",
        "width = 2.0 / levels",
        ("test_likelihood::test_dequantized_values_fill_their_cells_evenly",),
    ),
    Plant(
        "coarse noise not rescaled",
        "convergence",
        ".sum(1) / factor**0.5",
        ".sum(1) / factor",
        (
            "test_convergence::test_coarse_noise_is_the_fine_noise_summed",
            "test_convergence::test_strong_orders_down_to_a_fixed_time",
        ),
    ),
    Plant(
        "correlated reverse kernel without its root",
        "exact",
        "factor, added = here.signal / before.signal,",
        "factor, added = (here.signal / before.signal) ** 2,",
        ("test_exact::test_every_law_of_a_correlated_gaussian_is_conditioning_of_its_joint_law",),
    ),
    Plant(
        "noise at the last step",
        "sampling",
        "self.variance(before, here) if s > 0 else 0.0",
        "self.variance(before, here) if s > 0 else added_var(before, here)",
        (
            "test_sampling::test_the_step_to_the_data_is_the_estimate_without_noise",
            "test_sampling::test_samplers_with_the_exact_denoiser_reproduce_the_law",
        ),
    ),
    Plant(
        "guard of the last step off by one",
        "sampling",
        "self.variance(before, here) if s > 0 else 0.0",
        "self.variance(before, here) if s > 1 else 0.0",
        ("test_sampling::test_ancestral_is_the_posterior_at_the_estimate",),
    ),
    Plant(
        "beta for beta tilde in DDIM",
        "sampling",
        "var = self.eta**2 * posterior_var(before, here)",
        "var = self.eta**2 * added_var(before, here)",
        (
            "test_sampling::test_ddim_steps_are_those_of_the_ddim_scheduler",
            "test_sampling::test_ddim_with_eta_one_is_ancestral_sampling",
        ),
    ),
    Plant(
        "DDIM's direction at the full noise",
        "sampling",
        "sqrt(max(before.noise_var - var, 0.0))",
        "sqrt(before.noise_var)",
        ("test_sampling::test_knowing_the_data_every_kernel_maps_marginal_to_marginal",),
    ),
    Plant(
        "walk one step behind",
        "kernels",
        "law = kernel(x, s, t)",
        "law = kernel(x, max(s - 1, 0), max(t - 1, 1))",
        (
            "test_sampling::test_a_walk_yields_the_state_after_each_step_without_gradients",
            "test_sampling::test_a_whole_walk_is_a_whole_run_of_the_scheduler",
        ),
    ),
    Plant(
        "memory of the step that was reached",
        "solvers",
        "memory=(t, x_0)",
        "memory=(s, x_0)",
        (
            "test_solvers::test_2m_is_the_multistep_scheduler",
            "test_solvers::test_a_walk_hands_the_memory_on_and_leaves_the_kernel_as_it_was",
        ),
    ),
    Plant(
        "the line through two estimates never continued",
        "solvers",
        "if s > 0 and self.memory is not None:",
        "if False:",
        (
            "test_solvers::test_2m_is_the_multistep_scheduler",
            "test_solvers::test_solvers_have_their_order_in_the_probability_flow",
        ),
    ),
    Plant(
        "Heun asks twice about one level",
        "solvers",
        "predicted_noise(self.q, self.denoise, x_s, s)",
        "predicted_noise(self.q, self.denoise, x_s, t)",
        (
            "test_solvers::test_heun_is_the_heun_scheduler",
            "test_solvers::test_solvers_have_their_order_in_the_probability_flow",
        ),
    ),
    Plant(
        "Langevin step of half the drift",
        "solvers",
        "-1 / q.schedule.level(s).noise",
        "-0.5 / q.schedule.level(s).noise",
        ("test_solvers::test_a_correction_moves_the_law_of_the_marginal_by_second_order_only",),
    ),
    Plant(
        "encoder asked about the level it leaves",
        "latents",
        "predicted_noise(q, denoise, x, t)",
        "predicted_noise(q, denoise, x, max(s, 1))",
        ("test_latents::test_decoding_what_was_encoded_returns_the_data",),
    ),
    Plant(
        "decay exchanged in the moving average",
        "training",
        "list(network.parameters()), 1 - decay)",
        "list(network.parameters()), decay)",
        ("test_training::test_ema_is_the_weighted_sum_of_its_history",),
    ),
    Plant(
        "seed ignored",
        "training",
        "np.random.SeedSequence([plan.seed, number])",
        "np.random.SeedSequence([0, number])",
        (
            "test_training::test_a_batch_is_a_function_of_seed_and_step",
            "test_training::test_the_same_seed_gives_the_same_weights",
        ),
    ),
    Plant(
        "randomness of the number of calls",
        "training",
        "np.random.SeedSequence([plan.seed, number])",
        "np.random.SeedSequence([plan.seed, number, _CALLS.append(0) or len(_CALLS)])",
        ("test_training::test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit",),
    ),
    Plant(
        "last step never trained",
        "weighting",
        "torch.randint(1, T + 1,",
        "torch.randint(1, T,",
        ("test_training::test_steps_are_uniform_from_1_to_T_and_noise_is_normal",),
    ),
    Plant(
        "weights moved before the loss is looked at",
        "training",
        'if loss.device.type == "cpu" or number % 50 == 0:',
        "if number % 50 == 0:",
        ("test_training::test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights",),
    ),
    Plant(
        "every process takes the whole batch",
        "training",
        "own = slice(first, None, parts)",
        "own = slice(None)",
        ("test_training::test_processes_share_one_batch",),
    ),
    Plant(
        "one process among several takes another's images",
        "training",
        "first = accelerator.process_index + part * accelerator.num_processes",
        "first = part * accelerator.num_processes",
        ("test_recipe::test_two_processes_are_one_with_the_same_batch",),
    ),
    Plant(
        "checkpoint before the average has moved",
        "recipe",
        "learner.ema.update(learner.network)\n            learner.losses.append(step.loss)\n            yield step\n",
        "learner.losses.append(step.loss)\n            yield step\n            learner.ema.update(learner.network)\n",
        ("test_recipe::test_a_resumed_learner_ends_with_the_same_bits",),
    ),
    Plant(
        "average left out of a checkpoint's return",
        "training",
        'self.ema.load_state_dict(state["ema"])',
        "pass",
        (
            "test_recipe::test_a_resumed_learner_ends_with_the_same_bits",
            "test_recipe::test_a_run_killed_at_any_moment_ends_with_the_same_bits",
        ),
    ),
    Plant(
        "broken weights saved over good ones",
        "training",
        "        if not all(finite):\n",
        "        if False:\n",
        ("test_recipe::test_broken_weights_never_replace_a_good_checkpoint",),
    ),
    Plant(
        "another recipe's checkpoint taken up",
        "recipe",
        "        if differing:\n",
        "        if False:\n",
        ("test_recipe::test_a_checkpoint_of_another_recipe_is_refused_and_kept",),
    ),
    Plant(
        "weight of the target not squared",
        "weighting",
        "(a - b * level.signal / level.noise) ** 2",
        "(a - b * level.signal / level.noise).abs()",
        (
            "test_weighting::test_a_weighting_is_the_same_loss_whatever_is_predicted",
            "test_weighting::test_min_snr_in_the_letters_of_its_authors",
        ),
    ),
    Plant(
        "weight of the bound without its half",
        "weighting",
        "0.5 * (before.snr - here.snr)",
        "1.0 * (before.snr - here.snr)",
        ("test_weighting::test_the_bound_weight_is_that_of_the_bound",),
    ),
    Plant(
        "a stratum that is never drawn",
        "weighting",
        "torch.arange(batch_size, dtype=torch.float64) + w",
        "torch.arange(batch_size, dtype=torch.float64) + 0.5",
        ("test_weighting::test_each_step_is_uniform",),
    ),
    Plant(
        "precision and recall exchanged",
        "metrics",
        "return precision.item(), recall.item()",
        "return recall.item(), precision.item()",
        (
            "test_metrics::test_precision_and_recall_by_hand",
            "test_metrics::test_precision_and_recall_tell_blur_from_collapse",
        ),
    ),
    Plant(
        "raw weights exported",
        "pretrained",
        'averaged = state["ema"]["network"]',
        'averaged = state["weights"]',
        ("test_pretrained::test_export_keeps_the_averaged_weights_to_half_precision",),
    ),
    Plant(
        "hash of a checkpoint not verified",
        "checkpoint",
        'if metadata.get("sha256") != _digest(document, tensors):',
        "if False:",
        (
            "test_checkpoint::test_every_flipped_bit_is_noticed",
            "test_checkpoint::test_a_changed_weight_is_named_as_such",
        ),
    ),
    Plant(
        "checkpoint written in place",
        "checkpoint",
        "save_file(tensors, beside, metadata=metadata)",
        "save_file(tensors, path, metadata=metadata); save_file(tensors, beside, metadata=metadata)",
        ("test_checkpoint::test_a_save_that_fails_leaves_the_old_file_and_nothing_else",),
    ),
    Plant(
        "places that read alike share a tensor",
        "checkpoint",
        "        while name in tensors:",
        "        while False:",
        ("test_checkpoint::test_keys_that_look_alike_do_not_overwrite_each_other",),
    ),
    Plant(
        "md5 of the data not verified",
        "data",
        "    if digest != md5[file]:",
        "    if False:",
        (
            "test_data::test_a_changed_pixel_is_noticed",
            "test_data::test_swapped_files_are_named",
            "test_data::test_a_truncated_file_is_named",
        ),
    ),
    Plant(
        "md5 of a download not verified",
        "data",
        'registry = {file: f"md5:{digest}" for file, digest in files.md5.items()}',
        "registry = dict.fromkeys(files.md5)",
        ("test_data::test_a_corrupted_download_is_refused_and_what_was_good_stays",),
    ),
    Plant(
        "biased energy distance",
        "metrics",
        "(len(x) * (len(x) - 1))",
        "len(x) ** 2",
        (
            "test_metrics::test_energy_distance_is_unbiased_at_equal_laws",
            "test_metrics::test_energy_distance_by_hand",
        ),
    ),
    Plant(
        "covariances added without their root",
        "metrics",
        "clamp(min=0).sqrt().sum()",
        "clamp(min=0).sum()",
        ("test_metrics::test_frechet_distance_is_that_of_the_matrix_square_root",),
    ),
    Plant(
        "time ignored by the network",
        "nets",
        "h = F.silu(torch.addcmul(shift, self.norm_2(h), 1 + scale))",
        "h = F.silu(self.norm_2(h))",
        ("test_nets::test_the_prediction_depends_on_x_and_on_t_sample_by_sample",),
    ),
    Plant(
        "guidance in the other convention of the weight",
        "guidance",
        "return weighted_sum(self.w, self.toward(x_t, t), 1 - self.w, away)",
        "return weighted_sum(1 + self.w, self.toward(x_t, t), -self.w, away)",
        ("test_guidance::test_the_weight_is_that_of_the_formula_of_others_for_the_noise",),
    ),
    Plant(
        "the tilted law raises all of p(x, y) to the power",
        "guidance",
        "return self.law.log_prob(x) + w * self.log_class(label, x)",
        "return w * (self.law.log_prob(x) + self.log_class(label, x))",
        ("test_guidance::test_rejection_draws_from_the_tilted_law",),
    ),
    Plant(
        "rejection without the share that proposals already hold",
        "guidance",
        "(self.given(label), w - 1)",
        "(self.given(label), w)",
        ("test_guidance::test_rejection_draws_from_the_tilted_law",),
    ),
    Plant(
        "labels of other rows than the images",
        "training",
        "    rows, _ = _rows(plan, len(labels), number)\n",
        "    rows, _ = _rows(plan, len(labels), number + 1)\n",
        ("test_conditional::test_labels_are_those_of_the_images_and_a_share_is_dropped",),
    ),
    Plant(
        "dropout drawn from torch's own generator",
        "training",
        "        torch.manual_seed(_words(plan, number)[4] + part)\n",
        "        pass\n",
        ("test_conditional::test_dropout_is_drawn_from_the_seed_of_the_step",),
    ),
    Plant(
        "a packed file read without its hash",
        "data",
        "    if digest.hexdigest() != said:",
        "    if digest.hexdigest() != said and False:",
        ("test_conditional::test_a_damaged_or_foreign_packed_file_is_named",),
    ),
    Plant(
        "bools taken for whole numbers",
        "book/notebook",
        "if isinstance(value, bool) and kind is not bool:",
        "if False:",
        ("test_notebook::test_wrong_parameters_are_refused_by_name",),
    ),
    Plant(
        "inverse: sign of the adjoint",
        "inverse/guidance",
        "operator.adjoint(w))[0]",
        "-operator.adjoint(w))[0]",
        (
            "test_inverse::test_guidance_is_exact_for_one_gaussian",
            "test_inverse::test_dps_step_is_the_gradient_of_the_residual",
        ),
    ),
    Plant(
        "inverse: rows and columns of an adjoint exchanged",
        "inverse/measurement",
        "return rows.mT @ y @ columns",
        "return columns.mT @ y @ rows",
        ("test_inverse::test_adjoint",),
    ),
    Plant(
        "inverse: variance of the measurement forgotten in the guidance",
        "inverse/guidance",
        "var = spread * values + sigma_y**2",
        "var = spread * values",
        (
            "test_inverse::test_guidance_is_exact_for_one_gaussian",
            "test_particles::test_likelihood_against_a_multivariate_normal",
        ),
    ),
    Plant(
        "inverse: standard deviation for a variance in the exact posterior",
        "inverse/posterior",
        "measurement.sigma_y**2)",
        "measurement.sigma_y)",
        ("test_inverse::test_exact_posterior_is_bayes_on_a_grid",),
    ),
    Plant(
        "inverse: level from the square of the noise",
        "inverse/denoising",
        "sigmas = schedule.level(torch.arange(schedule.T + 1)).sigma",
        "sigmas = schedule.level(torch.arange(schedule.T + 1)).sigma ** 2",
        (
            "test_inverse::test_level_of_a_measurement",
            "test_inverse::test_scaled_measurement_has_the_law_of_its_level",
        ),
    ),
    Plant(
        "inverse: level shifted by one",
        "inverse/denoising",
        "return int((sigmas - sigma_y).abs().argmin())",
        "return int((sigmas - sigma_y).abs().argmin().clamp(min=1)) - 1",
        ("test_inverse::test_level_of_a_measurement",),
    ),
    Plant(
        "inverse: noise of the level added to that of the measurement",
        "inverse/denoising",
        "level.alpha_bar * sigma_y**2, 0.0)",
        "0 * sigma_y**2, 0.0)",
        (
            "test_inverse::test_replacement_writes_the_level_of_the_measurement",
            "test_inverse::test_replacement_of_everything_is_denoising",
        ),
    ),
    Plant(
        "inverse: particles weighted by the likelihood alone",
        "inverse/particles",
        "guess.log_prob - before.log_prob - lost",
        "guess.log_prob - before.log_prob",
        (
            "test_particles::test_weights_are_the_densities_of_target_over_proposal",
            "test_particles::test_evidence_and_posterior_are_those_of_the_chain",
        ),
    ),
    Plant(
        "inverse: weights kept after resampling",
        "inverse/particles",
        "torch.where(few, -math.log(n), log_weights)",
        "log_weights",
        (
            "test_particles::test_evidence_and_posterior_are_those_of_the_chain",
            "test_particles::test_resampling_keeps_every_particle_its_share",
        ),
    ),
    Plant(
        "signal at the end said to nobody",
        "recipe",
        "if gap > _LARGEST_PRIOR_GAP:",
        "if False:",
        ("test_recipe::test_a_chain_that_ends_with_signal_is_said_aloud_and_others_are_not",),
    ),
    Plant(
        "a checkpoint that trusts the schedule's name",
        "pretrained",
        'NoiseSchedule(about["log_alpha_bars"])',
        'NoiseSchedule(about["log_alpha_bars"] * 0.5)',
        ("test_pretrained::test_a_card_is_that_of_the_shipped_file",),
    ),
    Plant(
        "the host asked at every step",
        "training",
        'if loss.device.type == "cpu" or number % 50 == 0:',
        "if True:",
        ("test_device::test_no_loop_waits_for_the_device_or_copies_to_it",),
    ),
    Plant(
        "a sampler with another forward process",
        "denoiser",
        "    if not _same_levels(theirs, ours):\n",
        "    if False:\n",
        (
            "test_denoiser::test_a_denoiser_of_another_forward_process_is_refused",
            "test_solvers::test_every_sampler_refuses_a_denoiser_of_another_process",
        ),
    ),
    Plant(
        "one noise for every step of a walk",
        "kernels",
        "z = next(draws)",
        "z = next(iter(noise or ()))",
        ("test_sampling::test_a_walk_with_given_noise_is_the_walk_that_draws_it",),
    ),
    Plant(
        "a schedule's name that means the ends of one step",
        "schedule",
        'linear_schedule(whole_number("T", T, least=21), 0.1 / T, 20 / T)',
        'linear_schedule(whole_number("T", T, least=21))',
        ("test_schedule::test_a_name_means_the_same_shape_at_every_T",),
    ),
    Plant(
        "noise variance squared back from its root",
        "schedule",
        "return cls(signal, noise, noise_var, log_alpha_bar)",
        "return cls(signal, noise, noise**2, log_alpha_bar)",
        ("test_schedule::test_the_noise_variance_is_kept_and_not_squared_back",),
    ),
)


def run_tests(copy: Path, tests: tuple[str, ...]) -> tuple[int, set[str]]:
    """Run the named tests on the package in ``copy``; return pytest's exit status and the names that failed."""
    names = [f"tests/{test.replace('::', '.py::')}" for test in tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *names]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = {test for test, name in zip(tests, names) if any(f" {name}" in line for line in lines)}
    return result.returncode, failed


def copy_project(folder: Path) -> Path:
    """Copy the package and its tests to ``folder``; stop if an interpreter there would import another copy."""
    for name in ("ddpm_nb", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    code = "import ddpm_nb; print(ddpm_nb.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    where = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    if Path(where.stdout.strip()).parent != folder / "ddpm_nb":
        raise SystemExit(f"the tests would import {where.stdout.strip() or where.stderr}, not the copy in {folder}")
    return folder


def verdict(plant: Plant, copy: Path) -> str:
    """Return 'caught', or what went wrong."""
    path = copy / "ddpm_nb" / f"{plant.module}.py"
    original = path.read_text("utf-8")
    if original.count(plant.source) != 1:
        return f"its passage stands {original.count(plant.source)} times in {plant.module}.py"
    bug = original.replace(plant.source, plant.bug)
    path.write_text(bug + "\n\n_CALLS: list[int] = []\n", "utf-8")
    try:
        status, failed = run_tests(copy, plant.tests)
    finally:
        path.write_text(original, "utf-8")
    if status not in (0, 1):
        return f"pytest ended with status {status}: the tests did not run"
    missed = [test for test in plant.tests if test not in failed]
    return f"SURVIVES {', '.join(missed)}" if missed else "caught"


def main() -> int:
    """Plant every bug, or the one named; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", help="plants whose name contains this")
    only = parser.parse_args().only or ""
    plants = [plant for plant in PLANTS if only in plant.name]
    if not plants:
        parser.error(f"no plant is called {only!r}; known: {'; '.join(plant.name for plant in PLANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(Path(folder).resolve())
        tests = tuple(sorted({test for plant in plants for test in plant.tests}))
        status, failed = run_tests(copy, tests)
        if status:
            print(
                f"without any plant, pytest ends with status {status}; failing: {', '.join(sorted(failed)) or 'none'}"
            )
            return 1
        verdicts = []
        for plant in plants:
            verdicts.append(verdict(plant, copy))
            print(f"{plant.module:<11} {plant.name}: {verdicts[-1]}", flush=True)
    caught = verdicts.count("caught")
    print(f"{caught} of {len(plants)} plants caught")
    return int(caught < len(plants))


if __name__ == "__main__":
    sys.exit(main())
