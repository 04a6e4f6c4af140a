"""Evaluate ranked lists: many decoding settings from one set of model calls, baselines, intervals, reports."""
