"""What a network is: its plan, how it is built, and how an image looks to it."""
