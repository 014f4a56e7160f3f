"""What people use: the command line `pkm` and the job files it reads."""
