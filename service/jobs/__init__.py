"""The jobs that a service keeps: what state each is in, what it asks of the cluster, and what people want of it."""
