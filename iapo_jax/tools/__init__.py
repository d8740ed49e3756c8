"""What is done with a policy or a run that exists."""
