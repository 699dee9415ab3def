"""A run told to people: the terminal, plots, report.html."""
