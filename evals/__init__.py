"""Measuring success: intervals, baselines, comparisons, reports."""
