"""What ``doctor.examine`` does, step by step: find the parts of a data set, check them, report."""
