"""The names of the figures that are kept of a run and compared."""

from __future__ import annotations

PERPLEXITY, USAGE, KL = "test_perplexity", "memory_usage", "kl_to_uniform"
# Perplexities of finetuning: on the test text of what was learned first and of what was learned then.
EARLY_BEFORE, EARLY_AFTER = "early_perplexity_before", "early_perplexity_after"
LATE_BEFORE, LATE_AFTER = "late_perplexity_before", "late_perplexity_after"
