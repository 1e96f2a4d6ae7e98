"""Update rules, and the learning rates that they use."""
