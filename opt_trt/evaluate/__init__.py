"""Measure how good and how fast an engine is: score its summaries beside those of Hugging Face's model."""
