"""Why a target can be missed, and what was tried against it; the report says it of those that a run has missed."""

from __future__ import annotations

WHY = {
    "lazy_adam_vs_torch_sparse_adam": """
An update of lazy Adam reads and writes a row and its two states, each as wide as the row, at random places of memory, and
before it the row is read twice, for the sums and for the gradient of the weights. The limit is a copy of as many bytes,
which waits for nothing, in the place of our pass. How far it is from the target hangs on the peer: most of its time goes
to fresh memory for every step, and from run to run of one machine its speed was seen to differ twofold, with that of the
kernel's page faults, while ours stayed the same. Kernels ask for rows ahead line by line, work on vectors of a
cache line, and write nothing between lookup and update; the same loops in C take the same time.""",
    "rowwise_adagrad_vs_fbgemm_cpu": """
See above; here the sort of the entries by row counts too. It is a radix sort of address and entry in one integer of 64 bits;
with the addresses looked up through the entries it took half as long again.""",
    "update_of_copy_bandwidth": """
The worst case are narrow bfloat16 rows with plain descent or row-wise Adagrad: of 64 numbers a row is two cache lines and
its gradient, read at random from the last cache, is four, which the bytes of a row do not count. The same lines touched in
the same order with nothing computed come to about the target. Tried: rows in the order of their tokens, whole and in parts,
so that gradients come in order (slower: rows then come from everywhere); roots and divisions of 64 rows before the first
step (no faster); rounding without random bits (a twentieth faster, and biased). Kept: the squares of a gradient are summed
once for each token, not for each row.""",
    "layer_vs_product_key_memory": """
At n = 256 a third of our step are the products of matrices that both have, of queries with their network and with the
sub-keys, at the processor's full speed. The rest is rows read for the sums and for the gradient of the weights, selection,
its gradient, and the update, each at the speed of the caches that hold its numbers. The peer's step takes a third longer
where page faults are slow, since it takes fresh memory for all it makes; ours takes none. Tried: sub-keys' gradients by a
product of matrices (slower than adding the chosen ones), sorting entries on both threads (no faster), selection of fewer
queries at a time (no faster). Kept: gradients of weights row by row, where rows have several entries each.""",
    "shm_vs_ray_actor_100k_rows": """
Ray hands over the array that the actor's gather has written to its object store, so both wait for one gather of rows at
random places of memory. With rows read in place there is nothing left but this gather, out of memory in small pages, which
a mapping that processes share has where the kernel gives it no large ones.""",
    "grpc_vs_ray_actor_10mb": """
A Ray call between processes of one host moves an array through memory that both map, a message of gRPC goes through the
kernel's sockets, which copy it in and out. Plain TCP into a buffer that is used again misses the target too. Frames carry
arrays as they lie in memory; what gRPC adds is its flow control and one copy at each end.""",
    "grpc_bfloat16_vs_ray_actor_10mb": """
As with float32: plain TCP with half of the rows, which are as many bytes, misses it too. It gathers but half of the rows as
well: here the shard gathers all of them in float32, narrows them a frame at a time, and the client widens what has come.
Each of these three takes about as long as the frames' way through the sockets, so that half of the bytes save a fifth of
the time. On a network that is slower than memory they save half.""",
    "lookups_2e24_over_2e16": """
Tables of both sizes are larger than the caches, but the larger one has 256 times as many pages, and processors find the
place of a page in memory through tables that are then no longer in their caches either. Reading only the first number of each
row shows the same. In large pages, where a kernel gives them to memory that processes share, the same reads take less than
half of the time.""",
    "inference_vs_dense_twice_the_layers": """
What both models have in common, the embedding and the logits above all, takes part of the time, so that the layers saved
count for less. Of selecting, half is the product of queries and sub-keys; the rest takes less than half of what it took
with scalar loops, since numbers are compared 64 at a time.""",
}
