"""How many machines a run wants and where it would wait: its pipeline, simulated."""
