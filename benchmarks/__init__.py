"""What is measured, and against what; each script says how to run it."""
