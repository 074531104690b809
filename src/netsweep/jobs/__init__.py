"""What netsweep does: one file for each job, built from the same parts."""
