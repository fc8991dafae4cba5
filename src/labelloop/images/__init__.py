"""Arrays in a patient: volumes, the readers of files, and what is wrong with them."""
