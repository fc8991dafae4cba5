"""One run: its configuration, its jobs, what they need, and what is known before the first of them."""
