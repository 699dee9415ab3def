"""Whether a machine is fit for a run: facts in, findings out. cluster/machine.py finds the facts."""
