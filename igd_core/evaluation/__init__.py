"""How good ranked lists are: many decoding settings from one set of model calls, baselines, intervals, reports."""
