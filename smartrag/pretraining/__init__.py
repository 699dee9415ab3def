"""How models/tiny was made, and what it can do."""
