"""Masks, their cost, pruning rules that meet a budget, and compaction."""
