"""Measure where a step spends its time, and what the machine could do."""
