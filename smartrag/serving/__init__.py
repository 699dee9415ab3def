"""A trained policy behind HTTP: requests understood, episodes told, a page to try it."""
