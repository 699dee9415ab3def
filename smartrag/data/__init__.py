"""Questions and passages: where they come from, what serves what, which can be found."""
