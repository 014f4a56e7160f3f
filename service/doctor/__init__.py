"""What is wrong with a machine or a cluster for pkm, and what to do about it. One concern a file."""
