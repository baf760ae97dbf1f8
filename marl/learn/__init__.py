"""Learners turn a credit tensor into new policies; they never ask where the credit came from."""
