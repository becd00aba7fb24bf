"""What tests are made of: receivers that misbehave on purpose, and the one place that waits."""
