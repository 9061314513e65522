"""Starting a job and watching over it: the local supervisor, the rank it starts, and the doctor."""
