"""What there is: the table of cases, their groups, what is annotated, and the survey of all files."""
