"""Many runs, and what they come to together: ablations, sweeps, benchmarks."""
