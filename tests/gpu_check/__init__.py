"""What only a GPU can tell, found out by one command and written down; see docs/gpu.md."""
