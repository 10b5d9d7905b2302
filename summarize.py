"""Summarize CNN/DailyMail with Hugging Face and with an engine, and compare ROUGE, perplexity and speed."""

from opt_trt.commands import summarize

if __name__ == "__main__":
    summarize()
