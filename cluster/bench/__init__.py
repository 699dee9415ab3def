"""What each part costs beside the limit of what it is built on: `launch/bench.py`."""
