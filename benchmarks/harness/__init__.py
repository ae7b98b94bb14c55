"""What the benchmarks share: timing in interleaved rounds, machine facts, reports."""
