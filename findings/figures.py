"""The names of the figures that are kept of a run and compared."""

from __future__ import annotations

PERPLEXITY, USAGE, KL = "test_perplexity", "memory_usage", "kl_to_uniform"
# Perplexities of finetuning: on the test text of what was learned first, and of what was learned then.
OLD_BEFORE, OLD_AFTER = "old_perplexity_before", "old_perplexity_after"
NEW_BEFORE, NEW_AFTER = "new_perplexity_before", "new_perplexity_after"
