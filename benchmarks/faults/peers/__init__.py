"""Other tools on the cases of the fault bench, and the mixture of our slices without their confirmation."""
