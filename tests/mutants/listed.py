"""The mutants: lines that decide layout, independence, certificates, order, threads, keys, errors.

Each has a source text that occurs once in its file, what it becomes, the tests that should notice
(files under tests/, or file::test), and what is wrong then.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One wrong line."""

    file: str
    source: str
    becomes: str
    tests: str
    why: str


MUTANTS = [
    # ------------------------------------------------------------------- where the samples are
    Mutant(
        "dither/engine/ghost.py",
        "a[1] < b[0] for a, b in pairwise(spans)",
        "a[1] <= b[0] for a, b in pairwise(spans)",
        "engine/test_slices.py",
        "slices that share one element are taken as apart",
    ),
    Mutant(
        "dither/engine/ghost.py",
        "if self.at is None and len(regions) == len(self.uses):",
        "if self.at is None:",
        "engine/test_slices.py",
        "two uses of one slice are squared before they are summed",
    ),
    Mutant(
        "dither/engine/ghost.py",
        "return isinstance(self.kind.a, Tensor) and version(self.kind.a) != self.version",
        "return False",
        "engine/test_ghost.py::test_operands_overwritten_after_their_use",
        "an operand that was overwritten is used as it is now",
    ),
    Mutant(
        "dither/engine/batch_axis.py",
        "return t.unflatten(0, (-1, self.batch)).movedim(1, 0)",
        "return t.unflatten(0, (self.batch, -1))",
        "engine/test_batch_axis.py",
        "samples folded behind the positions are read as folded in front",
    ),
    Mutant(
        "dither/engine/uses.py",
        "if d <= reach:",
        "if d < reach:",
        "engine/test_slices.py",
        "a slice that overlaps itself is taken as numbers of its own",
    ),
    Mutant(
        "dither/engine/uses.py",
        "if leaf is not None and id(leaf) in self.names:",
        "if leaf is None and id(leaf) in self.names:",
        "engine/test_ghost.py::test_what_no_rule_meets",
        "a use that no rule has met is not found in the graph",
    ),
    # ------------------------------------------------------------------------- independence
    Mutant(
        "dither/halves.py",
        "range((batch - 1).bit_length())",
        "range(batch.bit_length() - 1)",
        "engine/test_certificate.py::test_any_two_samples_differ_in_one_of_the_halves",
        "a pair of samples is told apart by no half",
    ),
    Mutant(
        "dither/regulariser/independence.py",
        "return here.samples if shared and not here.stack else None",
        "return None",
        "regulariser/test_nodes.py",
        "samples that share one ε of a Node are taken as apart",
    ),
    Mutant(
        "dither/regulariser/expected.py",
        "return n if every and all(_same(part, z) for part in every) else 1",
        "return n",
        "regulariser/test_independence.py::test_draws_are_stacked_only_where_samples_are_independent",
        "draws are stacked where a large batch gives other outputs",
    ),
    Mutant(
        "dither/regulariser/expected.py",
        "else b.numel() == 2 * a.numel())",
        "else True)",
        "regulariser/test_expected.py::test_a_tensor_that_the_samples_share_has_one_draw_a_forward",
        "stacked draws share what the samples share",
    ),
    Mutant(
        "dither/regulariser/one_by_one.py",
        "self.possible = self._same_slope(z_i, i)",
        "self.possible = True",
        "engine/test_certificate.py::test_weights_of_models_that_mix_are_right",
        "a sample alone stands for the batch where only its output is the same",
    ),
    Mutant(
        "dither/regulariser/one_by_one.py",
        "start[i::batch] = column[i::batch]",
        "start[i] = column[i]",
        "attach/test_stacked.py",
        "one replica's sample stands for those of all",
    ),
    Mutant(
        "dither/regulariser/pull.py",
        "            self.noise.model.training,\n",
        "",
        "engine/test_certificate.py::test_the_same_functions_in_another_mode_are_asked_anew",
        "what eval mode told is taken for train mode",
    ),
    Mutant(
        "dither/regulariser/pull.py",
        "if not graph.overwritten:",
        "if True:",
        "engine/test_certificate.py::test_a_tensor_that_is_written_to_later_keeps_its_value",
        "a site's value is read after it was overwritten",
    ),
    # --------------------------------------------------------------------------- the certificate
    Mutant(
        "dither/regulariser/pull.py",
        "            graph.compare(compared)\n",
        "",
        "engine/test_certificate.py::test_a_planted_pair_is_missed_half_of_the_time_and_not_twice",
        "a graph that is known is never asked again",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "torch.randn(len(columns), generator=self.rng).to(columns)",
        "torch.ones(len(columns)).to(columns)",
        "engine/test_certificate.py::test_columns_that_cancel_leave_a_mixture",
        "columns that cancel leave nothing in the mixture",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "self.half = random_half(len(self.column)).to(self.column.device)",
        "self.half = torch.arange(len(self.column)) % 2 == 0",
        "engine/test_certificate.py::test_a_planted_pair_is_missed_half_of_the_time_and_not_twice",
        "the silenced half is always the same, and some pairs are missed for ever",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "off = torch.minimum(norms(v, 1), norms(v - u, 1))",
        "off = torch.minimum(v.abs(), (v - u).abs())",
        "engine/test_certificate.py::test_rows_ask_for_more_than_elements",
        "a row of several samples passes if each element has one",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "self.found.parameters.add(use.name)",
        "pass",
        "engine/test_certificate_kinds.py::test_weights_of_what_begins_to_mix_are_right_from_then_on",
        "parameters whose samples moved are not told",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "    lost |= _off(graph, alone, i, lost)\n",
        "",
        "engine/test_certificate.py::test_a_rule_that_is_wrong_is_found_out",
        "the rules are not compared with autograd's own gradient",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "off = norms(a - b) if a.shape == b.shape else torch.tensor(torch.inf)",
        "off = norms(a - a)",
        "engine/test_replay.py::test_a_rule_that_is_wrong_is_found_out",
        "any replay stands for autograd",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "size, root = norms(b.flatten(2), 2), graph.eps**EPS / 2",
        "size, root = norms(b.flatten(2), 2), 1.0",
        "engine/test_replay.py::test_a_norm_that_is_wrong_is_found_out",
        "a replayed norm may be twice autograd's",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "if any(d > ROUNDING * float(norms(again[n] / 3 - told[n])) for n, d in off.items()):",
        "if False:",
        "engine/test_cancellation.py::test_a_rule_that_fails_for_some_columns_is_not_asked_twice",
        "a replay that is wrong for some columns is cleared by another column",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "ROUNDING = 64 ",
        "ROUNDING = 0 ",
        "engine/test_cancellation.py::test_a_random_column_that_happens_to_cancel_does_not_refuse_a_right_R",
        "a random column that cancels by chance ends a replay",
    ),
    Mutant(
        "dither/noise/here.py",
        "if dim >= self.h.dim():",
        "if False:",
        "noise/test_here.py::test_a_dimension_of_samples_that_a_tensor_lacks_is_told",
        "noise of a dimension that a tensor lacks is drawn once for all samples",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "spoke and not folded)",
        "not folded)",
        "engine/test_certificate_kinds.py::test_a_gradient_of_0_teaches_nothing",
        "a gradient of 0 teaches for ever",
    ),
    Mutant(
        "dither/engine/certificate.py",
        "left[k] = [c for c in left[k] if in_layout(a, b, half, c, eps)]",
        "pass",
        "measures/test_curvature.py::test_the_trace_is_that_of_the_dense_hessian",
        "a layout is settled by its shape alone",
    ),
    # ------------------------------------------------------------------------------- the replay
    Mutant(
        "dither/engine/replay.py",
        "before.add_(g) if self.own and not self.recorded",
        "before.add_(g) if not self.recorded",
        "engine/test_replay.py::test_a_gradient_that_a_use_still_reads_is_not_added_to",
        "a gradient that another step still reads is added to in place",
    ),
    Mutant(
        "dither/engine/replay.py",
        "return [g[0]] * n, own and not kept",
        "return [g[0]] * n, own",
        "engine/test_ghost.py::test_bare_parameters",
        "a gradient that is still read is overwritten",
    ),
    # ------------------------------------------------------------------------- keys and clocks
    Mutant(
        "dither/attach/keys.py",
        "return Source(self.keys(site.name, step - 1, *where), reflect=micro < 0)",
        "return Source(self.keys(site.name, *where), reflect=micro < 0)",
        "attach/test_inject.py::test_draws_are_a_function_of_seed_and_step",
        "every step has the same draw",
    ),
    Mutant(
        "dither/attach/keys.py",
        "return Source(self.keys(site.name, step - 1, *where), reflect=micro < 0)",
        "return Source(self.keys(site.name, step, *where), reflect=micro < 0)",
        "attach/test_golden.py",
        "every step has the draw of the next one",
    ),
    Mutant(
        "dither/attach/keys.py",
        "else (m, call, rank())",
        "else (m, rank())",
        "attach/test_inject.py::test_calls_of_one_site_in_a_step_draw_afresh",
        "two calls of a site have one draw",
    ),
    Mutant(
        "dither/attach/keys.py",
        '(["injection", n] if n else [])',
        "[]",
        "attach/test_inject.py::test_two_injections_with_one_seed_draw_independently",
        "two injections with one seed have one draw",
    ),
    Mutant(
        "dither/attach/after.py",
        'key(s, "after", index, step - 1)',
        'key(s, "after", step - 1)',
        "attach/test_golden.py",
        "parameters of one shape take the same noise after a step",
    ),
    Mutant(
        "dither/noise/fill.py",
        "bits = np.random.SFC64([generator.initial_seed(), int(state)])",
        "bits = np.random.SFC64([generator.initial_seed()])",
        "noise/test_golden.py",
        "the second part of a long draw repeats the first",
    ),
    # -------------------------------------------------------------------- shadows and recomputation
    Mutant(
        "dither/attach/shadow.py",
        "if owner.__dict__.get(name) is site.put:",
        "if True:",
        "regulariser/test_together.py",
        "an injection takes away another's shadow",
    ),
    Mutant(
        "dither/attach/shadow.py",
        "below = site.parameter if below is None else below",
        "below = site.parameter",
        "attach/test_writes.py",
        "what a noisy part has written is not read by the rest of the whole",
    ),
    Mutant(
        "dither/attach/recompute.py",
        "in reversed(self.seen.get(place, ())):",
        "in self.seen.get(place, ()):",
        "attach/test_recompute.py::test_foreign_checkpoints_of_equal_inputs_are_recomputed_last_call_first",
        "among equal inputs the first call's draw is recomputed, not the last one's",
    ),
    Mutant(
        "dither/attach/recompute.py",
        "if number not in self.used and alike(seen, look):",
        "if alike(seen, look):",
        "attach/test_recompute.py::test_foreign_checkpoints_of_equal_inputs_are_recomputed_last_call_first",
        "one call is recomputed for two",
    ),
    Mutant(
        "dither/attach/recompute.py",
        "if task != self.task:\n            self.task, self.asked = task, defaultdict(int)",
        "if self.task < 0:\n            self.task, self.asked = task, defaultdict(int)",
        "attach/test_recompute.py::test_retain_graph_and_a_second_backward",
        "a second backward pass goes on where the first one ended",
    ),
    Mutant(
        "dither/attach/recompute.py",
        "and torch.equal(a, b)",
        "",
        "attach/test_recompute.py::test_foreign_checkpoints_of_two_inputs_in_any_order",
        "any input of a shape is recognised",
    ),
    # ------------------------------------------------------------------------------- the threads
    Mutant(
        "dither/attach/threads.py",
        "while self.owner not in (None, me) and self._busy(self.owner):",
        "while False:",
        "attach/test_threads.py",
        "two threads run forwards at once",
    ),
    Mutant(
        "dither/attach/threads.py",
        "if self.owner == threading.get_ident():",
        "if self.owner is not None:",
        "attach/test_threads.py",
        "a forward that never began releases another thread's",
    ),
    Mutant(
        "dither/attach/threads.py",
        "(self.readings > 0 or calls(self.model, frame) > 0)",
        "calls(self.model, frame) > 0",
        "attach/test_threads.py",
        "a reading is interrupted between its forwards",
    ),
    Mutant(
        "dither/attach/threads.py",
        "if not (self.forwards or self.readings):",
        "if not self.forwards:",
        "attach/test_threads.py",
        "a forward inside a reading ends the reading's turn",
    ),
    # ------------------------------------------------------------------ estimates and their errors
    Mutant(
        "dither/estimate.py",
        "(draws.std() / draws.numel() ** 0.5)",
        "(draws.std() / (draws.numel() - 1) ** 0.5)",
        "regulariser/test_expected.py::test_estimates",
        "a standard error is too large by 1/(2N) of itself",
    ),
    Mutant(
        "dither/regulariser/expected.py",
        "return (pairs[0] + pairs[1]) / 2",
        "return torch.cat(tuple(pairs))",
        "regulariser/test_expected.py::test_the_standard_error_is_that_of_many_repetitions",
        "the halves of a pair count as independent draws",
    ),
    Mutant(
        "dither/regulariser/expected.py",
        'chosen = self.index if self.of % m == 0 else key(self.seed, "which", self.index)',
        "chosen = self.index",
        "regulariser/test_expected.py::test_uneven_draws_in_turn_favour_no_parameter",
        "draws that come out uneven favour the first parameters",
    ),
    Mutant(
        "dither/regulariser/pull.py",
        "share = self.noise.share(site) * total",
        "share = total",
        "regulariser/test_math.py::test_three_ways_to_spend_sigma_have_one_regulariser",
        "a parameter that has its turn in one step of M has all of σ² in R",
    ),
    Mutant(
        "dither/measures/curvature.py",
        "STEIN = (PILOT - 1) / (PILOT - 3)",
        "STEIN = 1.0",
        "measures/test_curvature.py::test_the_plan_allows_for_what_a_pilot_does_not_know",
        "probes are planned as if the pilot's spread were the true one",
    ),
    Mutant(
        "dither/measures/curvature.py",
        "return range(PILOT, PILOT + need)",
        "return range(need)",
        "measures/test_curvature.py::test_two_stages_are_unbiased_and_reach_the_precision",
        "the number of probes depends on the values that are averaged",
    ),
    Mutant(
        "dither/measures/probes.py",
        "all(count[u.name] == 1 and u.name not in stray for u in point.uses)",
        "all(u.name not in stray for u in point.uses)",
        "measures/test_curvature.py::test_a_parameter_used_twice_is_probed_as_one",
        "a parameter used twice is probed in two places that know nothing of each other",
    ),
    Mutant(
        "dither/measures/probes.py",
        "        one[at] = batch\n        channel",
        "        channel",
        "measures/test_probes.py",
        "two samples share the signs of a probe",
    ),
]
