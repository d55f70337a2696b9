"""Operation of runs: status, machine checks, and planning by simulation."""
