"""Judging a policy: what was measured, beside what else could decide."""
