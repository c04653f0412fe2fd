"""This process and this machine: signals, child processes, home folder, limits."""
