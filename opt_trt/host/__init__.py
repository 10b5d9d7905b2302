"""Services of the machine for any command: files, progress, threads, memory. This package knows nothing of models."""
