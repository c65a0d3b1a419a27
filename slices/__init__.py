"""The joint slice: what its channels mean, how it is stored, made from volumes, and shown."""
