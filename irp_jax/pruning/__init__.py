"""Masks, what they cost, how they meet a budget, and cutting the small network out."""
