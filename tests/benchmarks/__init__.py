"""What measures time against peers; python -m tests.benchmarks.step."""
