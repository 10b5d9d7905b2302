"""What any command needs of the machine: files, progress, threads, memory. It knows nothing of models."""
