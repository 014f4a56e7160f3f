"""What docs/results.md says beside the figures: what a finding is, and why a statement may fail at this scale.

`why` stands on the page only where a statement of the finding does not reproduce or is left undecided.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """The words about one finding."""

    title: str
    about: str
    why: str = ""


SECTIONS = {
    "depth": Section(
        "A memory against more layers",
        "The paper: 12 layers with one memory of 512 x 512 slots reach a test perplexity of 15.6, 24 layers without one "
        "16.0, at almost half of the speed; 12 layers alone 17.7. Here 4 layers, 8 layers, and 4 layers with a memory of "
        "16,384 slots in the place of the feed-forward of layer 3, at equal tokens. These are too few tokens for 8 dense "
        "layers to be better than 4, so that to be better than 8 says no more here than to be better than 4. The learning "
        "rate, 1e-3, was chosen for how much of the table is used: with 4e-3, tried with one seed, all three reach lower "
        "perplexities, in much the same order, and less of the table is used.",
        "Speed: the memory reads 64 rows a token however narrow the layers are, and makes queries and compares sub-keys for "
        "them; a dense layer of width 64 takes very little beside that. The wider the model, the less a memory costs beside "
        "a layer; [Performance](performance.md) has the same comparison at width 256.",
    ),
    "batch_norm": Section(
        "Batch norm of the queries",
        "The paper, with a model of 6 layers: at K = 262,144 97.9 % of the slots are used with batch norm and 64.4 % "
        "without, at 1,048,576 80.3 % and 25.8 %; up to 65,536 it is not needed.",
        "These runs end after 204,800 tokens, the paper's after billions. So early, queries are much alike and few slots are "
        "used, the fewer the larger the table: the shares are far below the paper's, and what can be compared is their "
        "direction, how many more slots batch norm leaves in use. As not even 16,384 slots are all in use without it, its "
        "perplexity can differ at that size already.",
    ),
    "flat_keys": Section(
        "Product keys and flat keys",
        "The paper: with a whole key for each slot, all compared, only 10 to 20 % of the slots are used, with product "
        "keys 97 to 100 % (up to K = 262,144). At K = 16,384 and 65,536 flat keys reach perplexities of 23.2 and 22.6, at "
        "35,000 and 28,500 words/s, and ever slower as K grows; product keys 23.0 and 21.9, at about 36,000 words/s for "
        "each K. Here both sizes are a quarter of those: all scores of K = 65,536 take half an hour of a core for each run.",
        "A slot's whole key is its own: flat keys are 128 times as many numbers as sub-keys at K = 16,384 (see the "
        "last column), all of which learn. In runs this short that makes up for the slots that are not used; the paper's own "
        "difference, 1 %, is less than what seeds differ by here. Usage is far from the paper's on both sides, as use has "
        "only begun to spread or to narrow: the direction is the same for every seed.",
    ),
    "position": Section(
        "Where the memory is",
        "The paper, perplexity with the memory in layer 1 to 6 of 6: 21.5, 20.7, 20.4, 20.1, 19.8, 20.3.",
        "After so few tokens deeper layers have hardly begun to make more of a token than its embedding: the earlier the "
        "memory, the more of its table is in use.",
    ),
    "heads_k": Section(
        "Heads and k",
        "The paper: 1 x 64, 2 x 32, 4 x 16 and 8 x 8 heads x k, which read equally many slots, all reach about 70 % usage "
        "and a perplexity of about 20.5.",
        "Each head has sub-keys of its own, so that more heads have more parameters, and so early bring more of the table "
        "into use.",
    ),
    "scaling": Section(
        "Speed as the table grows",
        "The paper: about 36,000 words/s for each K from 16,384 to 1,048,576, as only sub-keys are compared, and their "
        "number grows with the root of K.",
        "Training speed: with layers of width 64 the memory takes a large part of a step, and it does get dearer: 1,024 "
        "sub-keys a half are compared instead of 128, and the rows of a large table lie in main memory instead of the "
        "processor's cache, with fewer of a step's reads falling on the same row. In the paper's models of width 1,024 and "
        "more, on GPUs, all of this is small beside the dense layers. Selection alone grows far more slowly than K.",
    ),
    "successors": Section(
        "What came later",
        "One change each to the memory of layer 3, or to those of layers 2 and 3: the gate, normalised queries and keys, and "
        "shared tables of Memory+ (Berges and others, 2024, arXiv:2412.09764), the experts of one neuron of PEER (He, 2024, "
        "arXiv:2407.04153), and of UltraMem (Huang and others, 2024, arXiv:2411.12364) what keeps the selection exact. "
        "[Which memory to choose](choosing.md) says what each costs.",
        "The papers train for billions of tokens on wide models; here a table is hardly in use when a run ends, and what "
        "pays in the long run may not have begun to. Half as many experts are here 32 rows a token instead of 64 values, "
        "in rows twice as wide.",
    ),
    "revival": Section(
        "Dead slots that are revived",
        "K = 65,536; with revival, a sub-key that 50 steps have not selected is seeded again from one that is used often. No "
        "paper is compared with: what is stated is what revival is for.",
        "A revived sub-key has to earn its place in what is left of 400 steps.",
    ),
    "forgetting": Section(
        "New text without forgetting",
        "Sparse memory finetuning (Lin and others, 2025, arXiv:2510.15103): a model that has learned the addresses, for "
        "2,000 steps, goes on with invented facts (findings/facts.py), for 100 steps, with `pkm finetune`, either wholly or "
        "with `--only-rows`. The test part of the new text tells the same facts in another order and in other words. The "
        "paper: after learning facts, a model knew 89 % less of other questions when everything had learned, and 11 % less "
        "with the rows of memories alone that were most specific to the facts.",
        "So few steps with so few rows teach a model of width 64 little.",
    ),
}
